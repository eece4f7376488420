"""One build at a time in a repository: a second one says who holds the lock, and waits; a dead holder frees it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lorabuild.errors import naming


@contextmanager
def build_lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold `folder`/lock. It is the kernel's (flock), so that it ends with its holder, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / "lock"), folder / "holder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting: another build runs here{_who(holder)}")
        lock.acquire()
    try:
        with naming(holder):
            holder.write_text(json.dumps({"pid": os.getpid(), "since": f"{datetime.now():%H:%M:%S}"}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        found = json.loads(holder.read_text())
        return f" (process {found['pid']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
