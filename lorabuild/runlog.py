"""Write one line of JSON a job that did something; a run with nothing to do leaves an empty file."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT = 50  # non-empty files


class RunLog:
    """`.lorabuild/runs/<utc>.jsonl`, with `latest.jsonl` pointing at it. Not `kept`: nothing is written."""

    def __init__(self, folder: Path, kept: bool = True):
        self.path: Path | None = None
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
        if self.path is None:
            return
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    @staticmethod
    def _prune(folder: Path) -> None:
        """Keep the newest non-empty files, and room for the coming one."""
        files = sorted(path for path in folder.glob("*Z.jsonl") if path.is_file())
        full = [path for path in files if path.stat().st_size]
        for path in set(files) - set(full[-(KEPT - 1) :]):
            path.unlink(missing_ok=True)


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`: a symbolic link, renamed into place."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(target.name)
    except OSError:  # no symbolic links here (Windows): a hard link shows the same lines
        part.hardlink_to(target)
    part.replace(link)
