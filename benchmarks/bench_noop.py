"""Time `doit` with nothing to do, beside a bare walk of the same files, ninja and DVC: `python benchmarks/bench_noop.py`.

Repositories of 10, 100 and 1,000 projects, each with 60 images and captions, are made in a temporary folder and built with
stand-ins for the stages that take long; what decides is all real. ninja and DVC are timed if they are installed, on the
same tree. Every figure is that of a whole process, the median of several in turn; memory is its peak (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

IMAGES, IMAGE_BYTES = 60, 2048
HERE = Path(__file__).resolve().parent
LIMIT_RATIO, LIMIT_S, STALE_S, MEMORY_MB = 3.0, 0.15, 0.3, 150.0  # at 1,000 projects

DODO = """\
from standins import install

install("dataset", "latents", "train", "spectrum", "resize")
from lorabuild.graph import DOIT_CONFIG, task_lorabuild
"""
MANIFEST = """\
[project]
base = "tiny"

[[dataset.subset]]
image_dir = "images"

[recipe]
network_dim = 4
max_train_steps = 4
seed = {number}

[resize]
fro_ckpt = 1
thr = -3

[chop]
keep = ["TE", "OUT01"]
"""
# What a file's own name and times cost, and nothing else: the floor.
WALK = """\
import os, sys
waiting = sys.argv[1:]
while waiting:
    with os.scandir(waiting.pop()) as entries:
        for entry in entries:
            entry.stat()
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--projects", type=int, nargs="+", default=[10, 100, 1000])
    arguments.add_argument("--repeat", type=int, default=7)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    rows = [measured(count, options.repeat) for count in options.projects]
    print(json.dumps(rows, indent=1) if options.json else shown(rows))
    sys.exit(any(row["missed"] for row in rows))


def measured(count: int, repeat: int) -> dict:
    with tempfile.TemporaryDirectory(prefix="lorabuild-noop-") as folder:
        root = Path(folder)
        make(root, count)
        start = time.perf_counter()
        run(doit(root, "-n", "2"))
        first = time.perf_counter() - start
        run(doit(root))  # notes what is fresh, where the build ended too soon after its last file
        commands = {"walk": walk(root), "doit": doit(root), **peers(root, count)}
        times: dict[str, list[float]] = {name: [] for name in ("stale", *commands)}
        memory = 0.0
        for _ in range(repeat):
            for name, command in commands.items():
                seconds, peak_mb = run(command)
                times[name].append(seconds)
                memory = max(memory, peak_mb) if name == "doit" else memory
            times["stale"].append(stale(root))
        median = {name: statistics.median(values) for name, values in times.items()}
        files = sum(len(names) for _, _, names in os.walk(root / "projects"))
        over = median["stale"] - median["doit"]
        missed = []
        at_limit = count >= 1000  # below, doit's own start is more than the walk
        if at_limit and median["doit"] > LIMIT_RATIO * median["walk"] + LIMIT_S:
            missed.append(f"doit: more than {LIMIT_RATIO:g} x the walk + {LIMIT_S} s")
        if at_limit and over > STALE_S:
            missed.append(f"one stale project: more than {STALE_S} s over nothing to do")
        if at_limit and memory > MEMORY_MB:
            missed.append(f"more than {MEMORY_MB:g} MB")
        return {
            "projects": count,
            "files": files,
            "first_build": first,
            **median,
            "over": over,
            "memory_mb": memory,
            "missed": missed,
        }


def make(root: Path, count: int) -> None:
    """The repository: images of random bytes (their stage is a stand-in), captions, manifests."""
    noise = random.Random(count)
    (root / "dodo.py").write_text(DODO)
    said = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["doit"]["plugins"]["command"]
    (root / "doit.cfg").write_text("[COMMAND]\n" + "".join(f"{name} = {place}\n" for name, place in said.items()))
    for number in range(count):
        images = root / f"projects/p{number:04}/images"
        images.mkdir(parents=True)
        for image in range(IMAGES):
            (images / f"{image:03}.png").write_bytes(noise.randbytes(IMAGE_BYTES))
            (images / f"{image:03}.txt").write_text(f"trigger, tag {image}\n")
        (images.parent / "lora.toml").write_text(MANIFEST.format(number=number))


def doit(root: Path, *args: str) -> Callable[[], subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    return lambda: subprocess.Popen(
        [sys.executable, "-m", "doit", *args], cwd=root, env=environment, stdout=subprocess.DEVNULL
    )


def walk(root: Path) -> Callable[[], subprocess.Popen]:
    return lambda: subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WALK, str(root / "projects"), str(root / "build")]
    )


def stale(root: Path) -> float:
    """`doit` after an edit of one project's kept blocks, to ones that were never kept."""
    manifest = root / "projects/p0003/lora.toml"
    weight = random.random()
    manifest.write_text(
        MANIFEST.format(number=3).replace('keep = ["TE", "OUT01"]', f"weights = {{ OUT01 = {weight} }}")
    )
    seconds, _ = run(doit(root))
    return seconds


def peers(root: Path, count: int) -> dict[str, Callable[[], subprocess.Popen]]:
    """Other build tools that are installed, with the same files as inputs; each is brought to where nothing is to be done."""
    found = {}
    if ninja := shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])):
        lines = ["rule stamp", "  command = touch $out"]
        for number in range(count):
            images = root / f"projects/p{number:04}"
            inputs = [str(path) for path in sorted(images.rglob("*")) if path.is_file()]
            lines.append(f"build .ninja/p{number:04}: stamp {' '.join(inputs)}")
        (root / "build.ninja").write_text("\n".join(lines) + "\n")
        found["ninja"] = lambda: subprocess.Popen([ninja], cwd=root, stdout=subprocess.DEVNULL)
        run(found["ninja"])
    if count <= 10 and (dvc := shutil.which("dvc")):  # its first build of a hundred such projects takes five minutes
        stages = {
            f"p{n:04}": {"cmd": f"echo {n} > p{n:04}.out", "deps": [f"projects/p{n:04}"], "outs": [f"p{n:04}.out"]}
            for n in range(count)
        }
        subprocess.run([dvc, "init", "--no-scm", "-q"], cwd=root, check=True)
        (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
        found["dvc"] = lambda: subprocess.Popen([dvc, "repro", "-q"], cwd=root, stdout=subprocess.DEVNULL)
        run(found["dvc"])
    return found


def run(start: Callable[[], subprocess.Popen]) -> tuple[float, float]:
    """Seconds of a process, and its peak memory in MB. What fails ends the benchmark."""
    began = time.perf_counter()
    process = start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{process.args}: exit {process.returncode}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def shown(rows: list[dict]) -> str:
    """The report as a Markdown table."""
    heads = [
        "projects",
        "files",
        "walk s",
        "doit s",
        "× walk",
        "one stale: over that",
        "memory MB",
        "ninja s",
        "DVC s",
        "first build s",
        "",
    ]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        peers = [f"{row[name]:.3f}" if name in row else "-" for name in ("ninja", "dvc")]
        figures = [
            f"{row['walk']:.3f}",
            f"{row['doit']:.3f}",
            f"{row['doit'] / row['walk']:.1f}",
            f"{row['over']:.3f}",
            f"{row['memory_mb']:.0f}",
        ]
        lines.append(
            [
                str(row["projects"]),
                str(row["files"]),
                *figures,
                *peers,
                f"{row['first_build']:.0f}",
                "; ".join(row["missed"]) or "within",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
