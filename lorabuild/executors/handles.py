"""Remember which jobs are under way elsewhere, so that a driver that was stopped, or killed, finds them again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorabuild.files import staged


@dataclass(frozen=True)
class Note:
    """A job of an executor of this kind: `record` is what it makes in the store, the key or a name below it."""

    job: str
    kind: str
    handle: str
    record: str
    since: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Handles:
    """`.lorabuild/jobs/<key>.json`. `parts` as in `staged`."""

    folder: Path
    parts: Path

    def read(self, key: str) -> Note | None:
        """The note of `key`; None if there is none that can be read."""
        try:
            return Note(**json.loads(self._path(key).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, key: str, note: Note) -> None:
        with staged(self._path(key), self.parts) as part:
            part.write_text(json.dumps(asdict(note)))

    def drop(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def noted(self) -> Iterator[str]:
        """The keys of all notes."""
        if self.folder.is_dir():
            yield from sorted(path.stem for path in self.folder.glob("*.json"))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
