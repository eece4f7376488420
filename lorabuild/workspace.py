"""What a running job sees: its inputs by role, a place for its outputs, scratch, and pieces shared across jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.errors import InputChanged
from lorabuild.hashing import digest_bytes, digest_json

Progress = Callable[[int, int, str], None]  # done, total, text ("loss 0.91")


@dataclass(frozen=True)
class ImageFile:
    """An image of a data set, with the digests that the job's key was made of. No caption file: both are None.

    `settings` are those of its folder that differ from the data set's; class_tokens only where they are its caption.
    """

    path: Path
    digest: str
    shown: str
    subset: int
    repeats: int = 1
    caption: Path | None = None
    caption_digest: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Workspace:
    """The world of one running job.

    `paths`: role -> file of an artifact, or folder of the base that a component lies in. `images`: role -> images.
    `staging` holds outputs until they are whole, `scratch` is private to the job's key and outlives a killed run.
    `saved` is told of an output as soon as it is whole; outputs that are still staged at the end follow by themselves.
    """

    staging: Path
    scratch: Path
    pieces: Path
    paths: Mapping[str, Path] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, list[ImageFile]] = field(default_factory=dict)
    on_saved: Callable[[str, Path], Path | None] = lambda role, path: None
    notes: dict[str, Any] = field(default_factory=dict)
    used_pieces: list[str] = field(default_factory=list)
    warn: Callable[[str], None] = lambda text: None
    anew: bool = False  # pieces are made again, as everything else
    # Whether the build is being stopped. A stage that asks now and then has the time to keep what it has, and raises
    # Interrupted; one that does not is ended where it is.
    stopping: Callable[[], bool] = lambda: False

    def path(self, role: str) -> Path:
        """The file of an input artifact, or the folder of the base that an input component lies in."""
        return self.paths[role]

    def output(self, role: str) -> Path:
        """Where to write the output `role`; folders in between exist."""
        path = self.staging / role
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def saved(self, role: str) -> Path:
        """Hand over the staged output `role` now, while the job goes on: a snapshot is published as it is made.

        Where it lies from now on.
        """
        return self.on_saved(role, self.staging / role) or self.staging / role

    def note(self, **facts: Any) -> None:
        """Add facts to this job's line in the run log: `note(encoded=1, reused=199)`."""
        self.notes.update(facts)

    def read(self, path: Path, digest: str | None) -> bytes:
        """The bytes of a user's file. Raises InputChanged if they are not those that the key was made of."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputChanged(path) from error
        if digest_bytes(data) != digest:
            raise InputChanged(path)
        return data

    def has_piece(self, identity: Any) -> bool:
        """Whether `piece` will find one, unless it is damaged."""
        return not self.anew and self._place(digest_json(identity)).exists()

    def piece(self, identity: Any, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The piece of this identity (a plain value that says all that shapes it), and whether it had to be made.

        Pieces are shared across jobs and keys. They are written without fsync and verified when read: the file starts
        with the digest of the rest. A damaged one is made again.
        """
        key = digest_json(identity)
        self.used_pieces.append(key)
        path = self._place(key)
        if not self.anew and (data := _read_piece(path)) is not None:
            return data, False
        data = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = self.staging.with_name(f"{key}.part")  # in the job's own folder: a kill leaves nothing among the pieces
        part.write_bytes(digest_bytes(data).encode() + data)
        os.replace(part, path)
        return data, True

    def _place(self, key: str) -> Path:
        return self.pieces / key[:2] / key


def _read_piece(path: Path) -> bytes | None:
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    head, data = raw[:32], raw[32:]
    return data if digest_bytes(data).encode() == head else None


def staged_roles(staging: Path) -> Iterable[str]:
    """The outputs that lie in `staging`, by role, in name order."""
    return sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
