"""Time what a user waits for after an edit: `python benchmarks/bench_edit.py` in a repository whose build is fresh.

Each figure is a ratio against the start of bare doit with one task that is fresh, in the same run: machines differ and are noisy.
The manifest is edited in place and set back.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--project", default="ember")
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    manifest = Path("projects") / options.project / "lora.toml"
    original = manifest.read_text()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(manifest, original, Path(folder), options.rounds)
    finally:
        manifest.write_text(original)
        doit()
    print(json.dumps(rows, indent=1))


def measure(manifest: Path, original: str, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds; the reference is measured in turn with the rest."""
    (folder / "dodo.py").write_text("def task_a():\n    return {'actions': ['true'], 'uptodate': [True]}\n")
    blocks = ["TE1", "TE2", "INP04", "INP05", "INP07", "INP08", "MID01", *(f"OUT0{n}" for n in range(6))]
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        keep = str(random.sample(blocks, 6)).replace("'", '"')  # never built before, or it would be restored
        thr = f"{-2.3 - random.random() / 5:.9f}"
        edits: dict[str, Callable[[], object]] = {
            "bare doit": lambda: None,
            "nothing to do": lambda: manifest.write_text(original),
            "keep": lambda keep=keep: manifest.write_text(put(original, "keep", keep)),
            "keep set back": lambda: manifest.write_text(original),
            "thr": lambda thr=thr: manifest.write_text(put(original, "thr", thr)),
            "thr set back": lambda: manifest.write_text(original),
        }
        for name, edit in edits.items():
            edit()
            start = time.perf_counter()
            doit(folder if name == "bare doit" else None)
            times.setdefault(name, []).append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {"seconds": round(seconds, 3), "times bare doit": round(seconds / medians["bare doit"], 2)}
        for name, seconds in medians.items()
    }


def put(text: str, key: str, value: str) -> str:
    """The manifest with another value of a key that stands on a line of its own."""
    return re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)


def doit(folder: Path | None = None) -> None:
    done = subprocess.run([sys.executable, "-m", "doit"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
