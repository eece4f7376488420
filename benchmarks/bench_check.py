"""Time `lorabuild check` of many images beside a bare decode of the same files: `python benchmarks/bench_check.py`.

The reference decodes every file to RGB with PIL, in as many threads as `check` takes, and does nothing else. Both are whole
processes, in turn, on files that were read before; decoding is what there is to do. The start is the time of `check` in a
repository with one small image. A second `check` has nothing to decode.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

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
    """Medians in seconds, of processes in turn."""
    many, one = make(folder / "many", count), make(folder / "one", 1)
    images = str(many / "projects/ember/images")
    check = [sys.executable, "-m", "lorabuild", "check"]
    seconds: dict[str, list[float]] = {"bare": [], "first": [], "second": [], "start": []}
    for _ in range(repeat):
        seconds["bare"].append(timed([sys.executable, "-c", BARE, images], many))
        for root in (many, one):
            shutil.rmtree(root / ".lorabuild", ignore_errors=True)
        seconds["start"].append(timed(check, one))
        seconds["first"].append(timed(check, many))
        seconds["second"].append(timed(check, many))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = (median["first"] - median["start"]) / median["bare"]
    wanted: dict[str, Callable[[], bool]] = {
        f"{RATIO} x the bare decode": lambda: ratio <= RATIO,
        "the second check": lambda: median["second"] - median["start"] <= SECOND_S_PER_1000 * count / 1000,
    }
    return {"images": count, **median, "ratio": ratio, "missed": [name for name, held in wanted.items() if not held()]}


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


def timed(command: Sequence[str], folder: Path) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return seconds


def shown(row: dict) -> str:
    return (
        f"{row['images']:,} images: bare decode {row['bare']:.1f} s, check {row['first']:.1f} s, of it {row['start']:.1f} s start: "
        f"{row['ratio']:.2f} x; again {row['second']:.1f} s\n" + ("; ".join(row["missed"]) or "all as wanted")
    )


if __name__ == "__main__":
    main()
