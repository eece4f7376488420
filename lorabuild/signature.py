"""Tell by its stat whether a file is what it was, and when such a look is not to be trusted."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

# A file whose time stamp is this close to the moment of looking may change again within the same tick of the clock
# and look the same: git calls such an entry racily clean. 20 ms covers ext4, xfs, btrfs and APFS;
GRAIN_NS = 20_000_000
COARSE_GRAIN_NS = 2_000_000_000  # FAT and some network file systems keep whole (even) seconds.

# Their inode numbers may change from mount to mount, or with the server's mood.
NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "glusterfs",
    "lustre",
    "afs",
    "fuse.sshfs",
    "fuse.rclone",
)

Signature = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


def signature(path: Path | str) -> Signature:
    """Of the file that `path` leads to. Raises OSError."""
    return signature_of(os.stat(path))


def signature_of(stat: os.stat_result) -> Signature:
    inode = 0 if stat.st_dev in network_devices() else stat.st_ino
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, inode


def racy(found: Signature, now_ns: int | None = None) -> bool:
    """Is the file so young that it may have changed since, unnoticed?"""
    mtime_ns = found[1]
    grain = COARSE_GRAIN_NS if mtime_ns % 1_000_000_000 == 0 else GRAIN_NS
    return (time.time_ns() if now_ns is None else now_ns) - mtime_ns < grain


@lru_cache(maxsize=1)
def network_devices() -> frozenset[int]:
    """The device numbers (st_dev) of mounted network file systems; none where the system has no list of mounts."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return frozenset(filter(None, map(_network_device, file)))
    except OSError:
        return frozenset()


def _network_device(line: str) -> int | None:
    """`36 35 0:42 / /data rw - nfs4 server:/data rw` -> the number of device 0:42; None for another kind."""
    words = line.split()
    kind = words[words.index("-") + 1] if "-" in words[:-1] else ""
    major, _, minor = words[2].partition(":")
    return os.makedev(int(major), int(minor)) if kind in NETWORK else None
