"""Kill builds at random moments and count what is lost: `python benchmarks/bench_kills.py --kills 200`.

SIGKILL hits the driver and its workers, the driver alone, or the workers alone, in builds of small repositories with
stand-ins for the stages that take long. Exit code 1 if a finished job was lost or built twice, a file was partial, or the
final bytes are not those of an undisturbed build.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from killing import Tally, kill_builds, undisturbed

IN_A_ROW = 6  # kills of one repository's builds; then one runs to its end


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorabuild-kills-") as folder:
        tally = kill(Path(folder), options.kills, options.seed)
    print(f"{tally} ({time.monotonic() - began:.0f} s, seed {options.seed})")
    sys.exit(bool(tally.problems))


def kill(folder: Path, kills: int, seed: int) -> Tally:
    """Kill builds of as many repositories as it takes."""
    golden, total, number = undisturbed(folder / "golden"), Tally(), 0
    while total.kills < kills and not total.problems:
        number += 1
        chance = random.Random(f"{seed} {number}")
        total.add(kill_builds(folder / str(number), golden, chance, min(IN_A_ROW, kills - total.kills)))
    return total


if __name__ == "__main__":
    main()
