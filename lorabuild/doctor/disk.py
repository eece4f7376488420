"""The file system that holds a repository: room, permissions, clock, and how copies are made on it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lorabuild.doctor.line import Line, fail, gigabytes, ok, warn

FULL_BYTES, LITTLE_BYTES = 1e9, 20e9  # a resume state of the largest recipes; a base and some trainings with snapshots
SKEW_SECONDS = 2.0  # coarser than any file system's stamps
FICLONE = 0x40049409  # linux/fs.h: make a file share the blocks of another


def look_at_room(root: Path) -> Iterator[Line]:
    """Free bytes where the repository, its store and its build/ lie: each file system once."""
    seen: set[int] = set()
    for folder in (root, root / ".lorabuild" / "store", root / "build"):
        if not folder.is_dir() or (device := os.stat(folder).st_dev) in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(folder).free
        said = f"{gigabytes(free)} free at {folder}"
        if free < FULL_BYTES:
            yield fail("disk", said, "`lorabuild gc` shows what can go from the store; builds fail on a full disk")
        elif free < LITTLE_BYTES:
            yield warn(
                "disk", said, "snapshots add up: `lorabuild plan` says how much a training takes, `lorabuild gc` frees"
            )
        else:
            yield ok("disk", said)


def look_at_folder(folder: Path) -> Iterator[Line]:
    """May files be written there, are their stamps those of the clock, can they share blocks? Nothing stays behind."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor.", dir=folder) as place:
            path = Path(place, "file")
            before = time.time()
            path.write_bytes(bytes(4096))
            stamp, after = path.stat().st_mtime, time.time()
            shares = _shares_blocks(path)
    except OSError as error:
        said = f"{folder}: cannot be written to: {error.strerror}"
        yield fail("folder", said, f'free the disk, or make it yours: chown -R "$USER" {folder}')
        return
    yield ok("folder", f"{folder} can be written to; " + COPIES[shares])
    yield from clock(stamp, before, after)


COPIES = {
    True: "its file system shares blocks between copies (reflink)",
    False: "its file system copies plainly (no reflink): what stands in build/ takes its size in the store, too",
}


def clock(stamp: float, before: float, after: float) -> Iterator[Line]:
    """`stamp`: of a file that was written between `before` and `after`, seconds of the machine's clock."""
    off = stamp - after if stamp > after else min(0.0, stamp - before)
    if abs(off) > SKEW_SECONDS:
        said = (
            f"the file system's stamps are {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this machine's clock"
        )
        yield warn("clock", said, "set both by NTP: files that are stamped in the future are read again at each build")
    else:
        yield ok("clock", "the file system's stamps are those of this machine's clock")


def _shares_blocks(path: Path) -> bool:
    try:
        import fcntl

        with open(path, "rb") as source, open(path.with_name("copy"), "wb") as target:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
    except (ImportError, OSError):
        return False
    return True
