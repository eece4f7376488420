"""How much memory there is: what a process may still take of the machine's or its container's, and what a GPU has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def available_bytes() -> int | None:
    """Bytes that can be had without swapping, what the system caches of files included; None where it does not say."""
    known = [one for one in (_of_machine(), _of_container()) if one is not None]
    return min(known) if known else None


def card_bytes() -> int | None:
    """The memory of the smallest GPU, as its driver tells it, all that is in use included. None without one."""
    if (command := shutil.which("nvidia-smi")) is None:
        return None
    query = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
        return min((int(line) * 2**20 for line in told.splitlines()), default=None)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def short_of(need: int) -> bool:
    """Whether `need` bytes more would not fit. False where nobody knows."""
    available = available_bytes()
    return available is not None and available < need


def _of_machine() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _of_container() -> int | None:
    try:
        limit = int((CGROUP / "memory.max").read_text())  # "max" for none
        used = int((CGROUP / "memory.current").read_text())
        facts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(facts.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
