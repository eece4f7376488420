"""Write one line of JSON a job that did something; a run with nothing to do leaves an empty file."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorabuild.errors import naming

KEPT = 50  # non-empty files


class RunLog:
    """`.lorabuild/runs/<utc>.jsonl`, with `latest.jsonl` pointing at it. Not `kept`: nothing is written."""

    def __init__(self, folder: Path, kept: bool = True):
        self.path: Path | None = None
        self.lines: list[dict[str, Any]] = []  # of this run, as they were written
        if not kept:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._prune(folder)
        self._lock = threading.Lock()
        self.path = folder / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%f}Z.jsonl"
        self.path.touch()
        _point(folder / "latest.jsonl", self.path)

    def write(self, job: str, event: str, seconds: float, why: Sequence[str], **notes: Any) -> None:
        """Add a line; `event` is built, restored, published or failed."""
        line = {"job": job, "event": event, "seconds": round(seconds, 3), "why": list(why), **notes}
        self.lines.append(line)
        if self.path is None:
            return
        with self._lock, naming(self.path):
            _append(self.path, f"{json.dumps(line, ensure_ascii=False)}\n".encode())

    @staticmethod
    def _prune(folder: Path) -> None:
        """Keep the newest non-empty files, and room for the coming one."""
        files = sorted(path for path in folder.glob("*Z.jsonl") if path.is_file())
        full = [path for path in files if path.stat().st_size]
        for path in set(files) - set(full[-(KEPT - 1) :]):
            path.unlink(missing_ok=True)


def _append(path: Path, line: bytes) -> None:
    """Add a line, whole or, where the disk is full, not at all: the next one would go on in its middle."""
    with open(path, "ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`: a symbolic link, renamed into place."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(target.name)
    except OSError:  # no symbolic links here (Windows): a hard link shows the same lines
        part.hardlink_to(target)
    part.replace(link)
