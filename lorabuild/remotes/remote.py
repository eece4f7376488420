"""Share what was built: records and blobs in a folder that many machines read, each checked before it enters the store."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lorabuild.hashing import digest_file, digest_json, sha256_from
from lorabuild.remotes.transport import Folder
from lorabuild.stage import members
from lorabuild.store import Output, Record, Store

LAYOUT = "v1"  # the folder in the remote; another layout would be another folder
FRESH_SECONDS = 60.0  # how long a listing is believed about what is not in it
DIGEST, SHA256 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")


class Damaged(Exception):
    """What is held under a key, there or here, is not what it should be; one line says what is wrong. None of it is spread.

    `blob`: the digest of the blob that it is about, if it is about one.
    """

    def __init__(self, line: str, blob: str | None = None):
        super().__init__(line)
        self.blob = blob


@dataclass(frozen=True)
class Shared:
    """A record as the remote has it: the local one, sha256 by role, and the metadata of the user's LoRAs it was made from."""

    record: Record
    sha256: Mapping[str, str]
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # digest of the LoRA -> its metadata


class Remote:
    """`v1/record/ab/<key>.json` and `v1/blob/ab/<digest>` below a URL.

    All methods raise Unreachable. A key is a record's in the store: a job's, or `<key>/step/10` for a snapshot. Who asks for
    a few keys alone says so: a listing of all takes long where there are many.
    """

    def __init__(self, folder: Folder, store: Store, few: bool = False):
        self.folder, self.store, self._few = folder, store, few
        self._mutex = threading.Lock()
        self._names: set[str] = set()
        self._listed = float("-inf")
        self._damaged: set[str] = set()  # what was found so here is written anew
        self.received = 0  # bytes of blobs

    def has(self, key: str) -> bool:
        """Is there a record of `key`? One listing answers for all keys; what is not in it is looked for again later."""
        name = _record_name(key)
        if self._few:
            return self.folder.size(name) is not None
        with self._mutex:
            if name not in self._names and time.monotonic() - self._listed > FRESH_SECONDS:
                self._names |= self.folder.sizes(f"{LAYOUT}/record").keys()
                self._listed = time.monotonic()
            return name in self._names

    def record(self, key: str) -> Shared | None:
        """The record of `key`, None if there is none. Raises Damaged for one that is not of this key."""
        if not self.has(key):
            return None
        try:
            return _parsed(key, self.folder.read(_record_name(key)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._damaged.add(key)
            raise Damaged(f"record {key}: {error or type(error).__name__}") from error

    def fetch(self, key: str, roles: Iterable[str]) -> Shared | None:
        """Bring the outputs `roles` of `key` into the store, then their record; None if the remote has no record of it.

        What differs in size, sha256 or xxh3 from what the record says never enters the store: raises Damaged.
        """
        shared = self.record(key)
        if shared is None:
            return None
        wanted = [one for role in roles for one in members(role, shared.record.outputs)]
        lacking = [role for role in wanted if role not in shared.record.outputs]
        if lacking:
            self._damaged.add(key)
            raise Damaged(f"record {key}: it lacks {', '.join(lacking)}")
        outputs = {role: shared.record.outputs[role] for role in wanted}
        for role, output in outputs.items():
            try:
                self.fetch_blob(output, shared.sha256[role])
            except Damaged:
                self._damaged.add(key)
                raise
        self.store.put_record(key, replace(shared.record, outputs=outputs))
        return shared

    def put(self, key: str, metadata: Mapping[str, Mapping[str, str]] | None = None, mend: bool = False) -> int | None:
        """Upload what the store has under `key`: blobs first, then the record. None if the remote has it: the first stays.

        `mend`: blobs that its record names and that are gone are uploaded again, if they are here. The bytes uploaded.
        Raises Damaged for a record that is gone from the store, and before a blob that is damaged or gone there.
        """
        record = self.store.record(key)
        if record is None:
            raise Damaged(f"record {key}: gone from the store")
        known = key not in self._damaged and self.has(key)
        if known and not mend:
            return None
        if known:
            theirs = self._readable(key)
            if theirs is not None and theirs.outputs != record.outputs:
                return None  # another build of the same key: it came first
            known = theirs is not None
        anew = key in self._damaged
        sent = sum(self._put_blob(output, anew) for output in record.outputs.values())
        if not known:
            data = _spelled(record, self.store, metadata or {})
            if self.folder.upload(_record_name(key), data, replace=anew):
                sent += len(data)
        with self._mutex:
            self._names.add(_record_name(key))
            self._damaged.discard(key)
        return None if known and not sent else sent

    def _readable(self, key: str) -> Record | None:
        """The remote's record of `key`, if it is one."""
        try:
            shared = self.record(key)
        except Damaged:
            return None
        return shared.record if shared else None

    def fetch_blob(self, output: Output, sha256: str) -> None:
        """Bring a blob into the store, unless it is there, whole. Raises Damaged, and then nothing has entered the store."""
        if whole(self.store.blob(output.digest), output):
            return
        try:
            part = self.folder.download(_blob_name(output.digest), self.store.parts, output.size)
        except FileNotFoundError:
            raise Damaged(f"blob {output.digest}: gone", output.digest) from None
        try:
            if not (whole(part, output) and sha256_from(part) == sha256):
                raise Damaged(f"blob {output.digest}: damaged", output.digest)
            self.store.put(part)
            self.received += output.size
        finally:
            part.unlink(missing_ok=True)

    def blobs(self) -> dict[str, int]:
        """Digest -> bytes of every blob that is there, by one listing."""
        return {name.rpartition("/")[2]: size for name, size in self.folder.sizes(f"{LAYOUT}/blob").items()}

    def put_blob(self, digest: str, content: Path | bytes) -> None:
        """Upload a blob, over what may be there. Who asks knows that the bytes are those of the digest."""
        self.folder.upload(_blob_name(digest), content, replace=True)

    def drop_blob(self, digest: str) -> None:
        self.folder.remove(_blob_name(digest))

    def expect(self, key: str) -> None:
        """Somebody says that the record of `key` is there by now, whatever the last listing said."""
        with self._mutex:
            self._names.add(_record_name(key))

    def drop(self, key: str, blob: str | None = None) -> None:
        """Forget the record of `key`, there and here, and there the `blob` that is damaged: who makes it again uploads
        none that is there with the right size."""
        self.folder.remove(_record_name(key))
        if blob:
            self.drop_blob(blob)
        self.store.drop_record(key)
        with self._mutex:
            self._names.discard(_record_name(key))
            self._damaged.discard(key)

    def _put_blob(self, output: Output, anew: bool) -> int:
        """The bytes that had to be uploaded. A blob that another record brought is there."""
        name = _blob_name(output.digest)
        if not anew and self.folder.size(name) == output.size:
            return 0
        self.folder.upload(name, _sound(self.store, output), replace=True)
        return output.size


def _record_name(key: str) -> str:
    return f"{LAYOUT}/record/{key[:2]}/{key.replace('/', '.')}.json"


def _blob_name(digest: str) -> str:
    return f"{LAYOUT}/blob/{digest[:2]}/{digest}"


def whole(path: Path, output: Output) -> bool:
    """Does the file have the size and the xxh3 that it should have?"""
    return path.exists() and path.stat().st_size == output.size and digest_file(path) == output.digest


def _sound(store: Store, output: Output) -> Path:
    """The store's blob of `output`, read: sha256 of rotten bytes would make them look right to everybody. Raises Damaged."""
    blob = store.blob(output.digest)
    if not whole(blob, output):
        raise Damaged(f"blob {output.digest}: damaged or gone in the store here")
    return blob


def _spelled(record: Record, store: Store, metadata: Mapping[str, Mapping[str, str]]) -> bytes:
    """The record as the remote has it. Pieces stay where they are: they are cheap to make, and many."""
    data = asdict(replace(record, pieces=()))
    for output in data["outputs"].values():
        output["sha256"] = sha256_from(_sound(store, Output(output["digest"], output["size"])))
    return json.dumps(data | {"metadata": metadata}, indent=1, sort_keys=True).encode()


def _parsed(key: str, data: bytes) -> Shared:
    """What `_spelled` wrote. Raises ValueError, KeyError, … for what is not a record of `key`: names in it become paths."""
    found: dict[str, Any] = json.loads(data)
    outputs, sha256 = {}, {}
    for role, one in found["outputs"].items():
        outputs[role], sha256[role] = Output(str(one["digest"]), int(one["size"])), str(one["sha256"])
        if not (DIGEST.fullmatch(outputs[role].digest) and SHA256.fullmatch(sha256[role])):
            raise ValueError(f"{role}: no digest")
    told = {name: found[name] for name in ("stage", "version", "params", "inputs")}
    if digest_json(list(told.values())) != key.partition("/")[0]:
        raise ValueError("it is of another key")
    record = Record(
        **told,
        outputs=outputs,
        seconds=float(found["seconds"]),
        made_with={str(name): str(version) for name, version in found["made_with"].items()},
        made_from={str(role): str(parent) for role, parent in found["made_from"].items()},
    )
    metadata = {
        str(digest): {str(name): str(text) for name, text in one.items()} for digest, one in found["metadata"].items()
    }
    return Shared(record, sha256, metadata)
