"""Keep what was built: blobs by digest, records by key; a record is written last, so it never names a missing blob."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.files import staged, sync, sync_folder
from lorabuild.hashing import digest_file


@dataclass(frozen=True)
class Output:
    """A file in the store: xxh3-128 of its bytes, and their number."""

    digest: str
    size: int


@dataclass(frozen=True)
class Record:
    """What was built under one key, out of what, and how."""

    stage: str
    version: int
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, Output]
    pieces: tuple[str, ...] = ()
    seconds: float = 0.0
    made_with: Mapping[str, str] = field(default_factory=dict)
    made_from: Mapping[str, str] = field(
        default_factory=dict
    )  # role of an input -> key of the record that it came from


@dataclass(frozen=True)
class Store:
    """A folder of blobs (`blob/ab/<digest>`, read-only), records (`record/ab/<key>.json`) and pieces."""

    root: Path
    reading: bool = False  # by a command that only reads: what is damaged stays where it is
    max_gb: float | None = None  # what gc keeps of what cheap stages made and nothing names

    @property
    def pieces(self) -> Path:
        return self.root / "piece"

    @property
    def parts(self) -> Path:
        """Where files are written before they get their place: what a killed run left there is nobody's."""
        return self.root / "part"

    def blob(self, digest: str) -> Path:
        """Where the blob of this digest lies or would lie."""
        return self.root / "blob" / digest[:2] / digest

    def put(self, path: Path) -> Output:
        """Move a finished file into the store. It must lie on the store's file system. Raises OSError (disk full)."""
        sync(path)
        output = Output(digest_file(path), path.stat().st_size)
        target = self.blob(output.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o444)
        os.replace(path, target)
        sync_folder(target.parent)
        return output

    def drop(self, digest: str) -> None:
        """Forget a damaged blob."""
        if not self.reading:
            self.blob(digest).unlink(missing_ok=True)

    def record_path(self, key: str) -> Path:
        """`<key>`, or `<key>/step/10` for a snapshot's record."""
        return self.root / "record" / key[:2] / f"{key.replace('/', '.')}.json"

    def record(self, key: str) -> Record | None:
        """The record of `key`; None if there is none, or none that can be read."""
        try:
            data = json.loads(self.record_path(key).read_bytes())
            outputs = {role: Output(**output) for role, output in data.pop("outputs").items()}
            return Record(outputs=outputs, pieces=tuple(data.pop("pieces")), **data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def put_record(self, key: str, record: Record) -> None:
        """Write the record; every blob that it names must be in the store."""
        with staged(self.record_path(key), self.parts) as part:
            part.write_bytes(json.dumps(asdict(record), indent=1, sort_keys=True).encode())

    def drop_record(self, key: str) -> bool:
        """Forget what was built under `key` (and its snapshots). True if there was something."""
        path = self.record_path(key)
        found = [path, *path.parent.glob(f"{path.stem}.*.json")] if path.parent.is_dir() else []
        found = [one for one in found if one.exists()]
        for one in found:
            one.unlink(missing_ok=True)
        return bool(found)
