"""The files by which a job on a node and the driver that waits for it speak: one folder a job, one file of events an attempt."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from lorabuild.executors.protocol import Event
from lorabuild.files import tail

SPEC, PLAN, LOG = "spec.json", "job.json", "log.txt"
TAIL = 64 * 1024  # bytes of a log that are looked at for its last lines


def next_attempt(folder: Path) -> tuple[int, IO[bytes]]:
    """A new file for the events of one more attempt, and its number, from 1. No two processes get the same one."""
    number = len(attempts(folder)) + 1
    while True:
        try:
            return number, open(folder / f"events-{number:04}.jsonl", "xb")
        except FileExistsError:
            number += 1


def attempts(folder: Path) -> list[Path]:
    """The files of events, in order: a requeued job has several."""
    return sorted(folder.glob("events-*.jsonl"))


def parsed(lines: Iterable[bytes]) -> list[Event]:
    """Those lines that are events: a stage's library may have printed others."""
    found: list[Event] = []
    for line in lines:
        try:
            event: Any = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found


class Reader:
    """Reads on in the events of a job. A line counts when its end is there; that of a killed process never comes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, int] = {}  # name -> bytes that were read, all of them whole lines

    def new(self) -> list[Event]:
        """The events since the last call, over all attempts, in order. Raises OSError."""
        found: list[Event] = []
        for path in attempts(self.folder):
            with open(path, "rb") as file:
                file.seek(self._read.get(path.name, 0))
                whole = file.read()
            whole = whole[: whole.rfind(b"\n") + 1]
            self._read[path.name] = self._read.get(path.name, 0) + len(whole)
            found += parsed(whole.splitlines())
        return found


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a text file; none where there is no file."""
    return tail(path, TAIL).splitlines()[-count:]
