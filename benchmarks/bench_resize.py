"""Time resize and chop on files of SDXL's size, beside resize_lora: `python benchmarks/bench_resize.py --peer CHECKOUT`.

Every figure is that of a whole fresh process, ours and the peer's in turn: medians, after one warm-up that fills the page
cache. Private memory is the peak of RssAnon, summed over a process and its children; a mapped checkpoint is not in it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from sdxl_shapes import VERSION, Data, ensure

POLL_S = 0.005
LIMIT_S = 900  # a process that takes longer is killed
MB = 1e6
THR, OTHER_THR = -3.55, -3.2
VECTORS = {  # a first number, then INP01..INP08, MID00..MID02, OUT00..OUT08
    "OUT01 only": "1" + ",0" * 12 + ",1" + ",0" * 7,  # the guide's
    "all 1": "1" + ",1" * 20,
    "all 0.5": "1" + ",0.5" * 20,
}
RUN = "{run}"  # in a command: the fresh folder of this one process, with out/ and a link to the checkpoint


@dataclass(frozen=True)
class Case:
    """Two commands, and what ours may take: `time` and `memory` as parts of the peer's, `MB` of private memory."""

    name: str
    ours: list[str]
    peer: list[str] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    forget: Path | None = None  # the peer's norms, deleted before each of its runs
    keep: Path | None = None  # where the results go, if a later case needs them


@dataclass(frozen=True)
class Sample:
    """One process, or the medians of several. `rss_mb` is VmHWM, `written_mb` the size of the results."""

    seconds: float
    private_mb: float
    rss_mb: float
    written_mb: float


class Failed(Exception):
    """A process ended badly; its last words."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peer", type=Path, metavar="DIR", help="a checkout of elias-gaeros/resize_lora; without it, ours alone")
    add("--peer-python", default=sys.executable, metavar="FILE", help="Python to run it with (this one)")
    default = Path(tempfile.gettempdir()) / f"lorabuild-bench-resize-{VERSION}"
    add("--data", type=Path, default=default, metavar="DIR", help="7.2 GB, made if missing, and kept (%(default)s)")
    add("--repeat", type=int, default=3, metavar="N", help="(%(default)s)")
    add("--threads", type=int, default=1, metavar="N", help="OMP_NUM_THREADS of both sides (%(default)s)")
    add("--json", action="store_true")
    add("--stage", nargs=3, help=argparse.SUPPRESS)  # this script as the process that is measured
    options = parser.parse_args()
    if options.stage:
        run_stage(*options.stage)
        return
    data = ensure(options.data.resolve())
    with tempfile.TemporaryDirectory(prefix="run-", dir=data.folder) as folder:  # where the checkpoint can be linked
        rows = [compare(case, data, Path(folder), options) for case in cases(data, Path(folder), options)]
    report = {"machine": machine(), "threads": options.threads, "repeat": options.repeat, "cases": rows}
    print(json.dumps(report, indent=1) if options.json else shown(report))


def cases(data: Data, folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """The order counts: the first resize leaves the peer's norms in its cache, `spectrum` leaves our spectrum."""
    ours, base, guide, out = [sys.executable, "-m", "lorabuild"], str(data.base), str(data.guide), f"{RUN}/out"
    copy = folder / "peer"  # its cache of norms lies beside the script
    if options.peer:
        shutil.copytree(options.peer, copy, ignore=shutil.ignore_patterns(".git", "norms_cache.json"))

    def peer(script: str, *arguments: str) -> list[str] | None:
        return [options.peer_python, str(copy / script), *arguments] if options.peer else None

    files = [guide, "--base", f"{RUN}/sdxl.safetensors", "-o", f"{out}/guide.safetensors"]
    first = [*ours, "resize", *files, "-r", recipe(THR)]
    peer_first = peer("resize_lora.py", "-o", out, "-r", recipe(THR), base, guide)
    yield Case("first resize", first, peer_first, {"time": 0.5, "memory": 0.5}, copy / "norms_cache.json")

    spectrum = folder / "spectrum"
    decompose = stage("spectrum", spectrum, {}, weights=data.guide, norms=data.norms)
    yield Case("(spectrum)", decompose, keep=spectrum)
    params = {"resize": {"fro_ckpt": 1.0, "thr": OTHER_THR}, "recipe": {"save_precision": "fp16"}}
    again = stage("resize", Path(out), params, spectrum=spectrum / "spectrum")
    peer_again = peer("resize_lora.py", "-o", out, "-r", recipe(OTHER_THR), base, guide)
    yield Case("another threshold", again, peer_again, {"time": 0.1, "MB": 200})

    for name, vector in VECTORS.items():
        chop = [*ours, "chop", guide, "--vector", vector, "-o", f"{out}/chop.safetensors"]
        peer_chop = peer("chop_blocks.py", guide, vector, "-o", f"{out}/chop.safetensors")
        yield Case(f"chop, {name}", chop, peer_chop, {"time": 0.3, "MB": 32})


def recipe(thr: float) -> str:
    return f"fro_ckpt=1,thr={thr}"


def stage(name: str, out: Path, params: Mapping[str, Any], **inputs: Path) -> list[str]:
    paths = {role: str(path) for role, path in inputs.items()}
    return [sys.executable, __file__, "--stage", name, str(out), json.dumps({"params": params, "inputs": paths})]


def run_stage(name: str, out: str, job: str) -> None:
    """Run one stage as a worker would, on files by role, its outputs to `out`."""
    from lorabuild.stage import Job
    from lorabuild.workspace import Workspace

    module, spec = importlib.import_module(f"lorabuild.stages.{name}"), json.loads(job)
    Path(out).mkdir(exist_ok=True)
    paths = {role: Path(path) for role, path in spec["inputs"].items()}
    workspace = Workspace(Path(out), Path(out, "scratch"), Path(out, "pieces"), paths=paths)
    module.STAGE.run(Job(f"{name}:guide", spec["params"], {}, []), workspace, lambda *step: None)


def compare(case: Case, data: Data, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the report."""
    samples: dict[str, list[Sample]] = {"ours": [], "peer": []}
    errors: dict[str, str] = {}
    for _ in range(1 + options.repeat):
        for side, command in (("ours", case.ours), ("peer", case.peer)):
            if command and side not in errors:
                if side == "peer" and case.forget:
                    case.forget.unlink(missing_ok=True)
                try:
                    samples[side].append(fresh_run(command, data, folder, options.threads, case.keep))
                except (Failed, OSError) as error:
                    errors[side] = str(error)
    ours, peer = (None if side in errors else median(samples[side][1:]) for side in ("ours", "peer"))
    found = {
        "time": ours.seconds / peer.seconds if ours and peer else None,
        "memory": ours.private_mb / peer.private_mb if ours and peer else None,
        "MB": ours.private_mb if ours else None,
    }
    return {
        "case": case.name,
        **{side: one and asdict(one) for side, one in (("ours", ours), ("peer", peer))},
        "ratios": {name: found[name] for name in ("time", "memory")},
        "limits": case.limits,
        "verdict": verdict(case.limits, found, "ours" in errors),
        "errors": errors,
    }


def verdict(limits: Mapping[str, float], found: Mapping[str, float | None], failed: bool) -> str:
    values = {name: found[name] for name in limits}
    if failed or any(value is not None and value > limits[name] for name, value in values.items()):
        return "FAIL"
    return "pass" if limits and None not in values.values() else "-"


def median(samples: list[Sample]) -> Sample | None:
    return Sample(*map(statistics.median, zip(*map(astuple, samples), strict=True))) if samples else None


def fresh_run(command: list[str], data: Data, folder: Path, threads: int, keep: Path | None) -> Sample:
    """Run it where nothing is known of the checkpoint: under another name, in a new folder, with an empty cache."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run = Path(name)
        out = keep or run / "out"
        out.mkdir(exist_ok=True)
        os.link(data.base, run / "sdxl.safetensors")
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        env = os.environ | counts | {"XDG_CACHE_HOME": str(run / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        words = [word.replace(RUN, name) for word in command]
        with open(run / "log", "w+b") as log:
            start = time.perf_counter()
            # A session of its own: what it has started is killed with it.
            process = subprocess.Popen(
                words, cwd=run, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            end, private, rss = watched(process)
            if process.returncode:
                log.seek(0)
                raise Failed(f"exit {process.returncode}: {log.read().decode(errors='replace')[-1500:].strip()}")
        written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        return Sample(end - start, private / MB, rss / MB, written / MB)


def watched(process: subprocess.Popen) -> tuple[float, int, int]:
    """Wait for its end: when that was, and the peaks of private and of all resident memory, in bytes."""
    peaks, ended, deadline = {"RssAnon": 0, "VmHWM": 0}, threading.Event(), time.monotonic() + LIMIT_S

    def poll() -> None:
        while not ended.wait(POLL_S):
            statuses = [memory(pid) for pid in family(process.pid)]
            for name in peaks:
                peaks[name] = max(peaks[name], sum(status.get(name, 0) for status in statuses))
            if time.monotonic() > deadline:
                return os.killpg(process.pid, signal.SIGKILL)

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        end = time.perf_counter()
        ended.set()
        poller.join()
    return end, peaks["RssAnon"], peaks["VmHWM"]


def family(pid: int) -> Iterator[int]:
    """A process, its children and theirs."""
    yield pid
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        children = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
    except OSError:
        return  # it has ended
    for child in " ".join(children).split():
        yield from family(int(child))


def memory(pid: int) -> dict[str, int]:
    """Bytes by name; none of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if words[-1] == "kB"}


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in info if line.startswith("model name")), "unknown")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0], **versions}


def shown(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table."""
    heads = ["case", "ours s", "peer s", "ratio", "ours private MB", "peer private MB", "ratio"]
    heads += ["ours RSS", "peer RSS", "ours writes MB", "peer writes MB", "limits", ""]
    lines = [", ".join(f"{name} {value}" for name, value in report["machine"].items())]
    lines += [f"threads {report['threads']}, medians of {report['repeat']}", ""]
    lines += [row(heads), row(["---"] * len(heads))]
    lines += [row(cells(one)) for one in report["cases"]]
    lines += [f"\n{one['case']}, {side}: {text}" for one in report["cases"] for side, text in one["errors"].items()]
    return "\n".join(lines)


def cells(one: Mapping[str, Any]) -> list[str]:
    def pair(key: str, form: str) -> list[str]:
        return [format(one[side][key], form) if one[side] else "-" for side in ("ours", "peer")]

    time_ratio, memory_ratio = (f"{value:.2f}" if value is not None else "-" for value in one["ratios"].values())
    measured = [*pair("seconds", ".2f"), time_ratio, *pair("private_mb", ".0f"), memory_ratio]
    limits = ", ".join(f"{name} ≤ {limit:g}" for name, limit in one["limits"].items())
    return [one["case"], *measured, *pair("rss_mb", ".0f"), *pair("written_mb", ".1f"), limits, one["verdict"]]


def row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    main()
