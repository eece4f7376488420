"""Time `lorabuild check` of many images beside a bare decode of the same files: `python benchmarks/bench_check.py`.

The reference decodes every file to RGB with PIL, in as many threads as `check` takes, and does nothing else. Both are whole
processes, in turn, on files that were read before; decoding is what there is to do. The start is the time of `check` in a
repository with one small image. A second `check` has nothing to decode. Ratios are those of the processor's seconds: by the
clock they are of little meaning where other processes want the same cores.
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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

RATIO, SECOND_S_PER_1000 = 1.3, 0.5  # the most that is wanted: x the bare decode, beyond the start; of a second check
SHAPES = [(512, 512), (448, 576), (576, 448), (384, 672), (640, 400)]
DISTINCT = 250  # pictures of noise that are made; the others are these with another first pixel row
MANIFEST = """\
[project]
base = "tiny"
kind = "style"
trigger = "ember"

[dataset]
resolution = [512, 512]
min_bucket_reso = 256
max_bucket_reso = 1024
[[dataset.subset]]
image_dir = "images"

[recipe]
max_train_steps = 10
"""
BARE = """\
import os, sys
from concurrent.futures import ThreadPoolExecutor
from PIL import Image

def decode(path):
    with Image.open(path) as image:
        return image.convert("RGB").size

with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
    print(len(list(threads.map(decode, [entry.path for entry in os.scandir(sys.argv[1]) if entry.name.endswith(".jpg")]))))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorabuild-check-") as folder:
        row = measured(Path(folder), options.images, options.repeat)
    print(json.dumps(row, indent=1) if options.json else shown(row))
    sys.exit(bool(row["missed"]))


def measured(folder: Path, count: int, repeat: int) -> dict:
    """Medians of processes in turn."""
    with ProcessPoolExecutor(1) as other:  # what this process has taken would count as its children's memory
        many, one = other.map(make, (folder / "many", folder / "one"), (count, 1))
    images = str(many / "projects/ember/images")
    check = [sys.executable, "-m", "lorabuild", "check"]
    runs: dict[str, list[Run]] = {"bare": [], "first": [], "second": [], "start": []}
    for _ in range(repeat):
        runs["bare"].append(timed([sys.executable, "-c", BARE, images], many))
        for root in (many, one):
            shutil.rmtree(root / ".lorabuild", ignore_errors=True)
        runs["start"].append(timed(check, one))
        runs["first"].append(timed(check, many))
        runs["second"].append(timed(check, many))
    middle = {name: Run(*map(statistics.median, zip(*taken, strict=True))) for name, taken in runs.items()}
    ratio = (middle["first"].cpu - middle["start"].cpu) / middle["bare"].cpu
    again = middle["second"].cpu - middle["start"].cpu
    wanted = {
        f"{RATIO} x the bare decode": ratio <= RATIO,
        "the second check": again <= SECOND_S_PER_1000 * count / 1000,
    }
    missed = [name for name, held in wanted.items() if not held]
    return {"images": count, **{name: one._asdict() for name, one in middle.items()}, "ratio": ratio, "missed": missed}


def make(root: Path, count: int) -> Path:
    """A repository with one project of so many JPEGs, each unlike the others, with captions."""
    images = root / "projects/ember/images"
    images.mkdir(parents=True)
    (root / "projects/ember/lora.toml").write_text(MANIFEST)
    chance = random.Random(7)
    made = [drawn(chance, SHAPES[number % len(SHAPES)]) for number in range(min(count, DISTINCT))]
    for number in range(count):
        image = made[number % len(made)].copy()
        image.paste((number % 256, number // 256 % 256, 99), (0, 0, 64, 64))
        image.save(images / f"{number:05}.jpg", quality=92)
        (images / f"{number:05}.txt").write_text(f"ember, red, sit, {number}")
    return root


def drawn(chance: random.Random, size: tuple[int, int]) -> Image.Image:
    """Coarse shapes and fine grain: a JPEG of them is as hard to decode as a photograph's."""
    coarse = Image.frombytes("RGB", (12, 12), chance.randbytes(432)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.frombytes("RGB", (size[0] // 2, size[1] // 2), chance.randbytes(size[0] // 2 * (size[1] // 2) * 3))
    return Image.blend(coarse, grain.resize(size, Image.Resampling.BILINEAR), 0.15)


class Run(NamedTuple):
    """Of a process and those that it began: seconds by the clock, of the processor, and the largest one's memory in MB."""

    clock: float
    cpu: float
    memory: float


def timed(command: Sequence[str], folder: Path) -> Run:
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        clock = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command[:4])}: {said.read().decode(errors='replace')[-1000:]}")
    return Run(clock, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3)


def shown(row: dict) -> str:
    head = "| | by the clock | of the processor | memory |\n|---|---|---|---|\n"
    names = {
        "bare": "bare parallel decode",
        "start": "`check` of one image: the start",
        "first": "`check` of all, the first time",
        "second": "`check` again, nothing changed",
    }
    lines = (
        f"| {name} | {row[key]['clock']:.1f} s | {row[key]['cpu']:.1f} s | {row[key]['memory']:.0f} MB |\n"
        for key, name in names.items()
    )
    said = "; ".join(row["missed"])
    return (
        f"{row['images']:,} images: {row['ratio']:.2f} x the bare decode, beyond the start\n{head}{''.join(lines)}"
        + (f"missed: {said}" if said else "all as wanted")
    )


if __name__ == "__main__":
    main()
