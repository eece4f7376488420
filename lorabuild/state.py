"""Remember between runs, in one SQLite file: digests of files by their stat, what was published, what each job was made of."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lorabuild.hashing import digest_file
from lorabuild.signature import Signature, racy, signature

DAY = 86_400  # seconds

SCHEMA = """
create table if not exists file (path text primary key, size int, mtime_ns int, ctime_ns int, ino int, digest text);
create table if not exists published (path text primary key, job text, fingerprint text, digest text);
create table if not exists job (name text primary key, key text, components text);
create table if not exists watch (manifest text primary key, value text);
create table if not exists memo (key text primary key, value text, used real);
"""


class State:
    """All of it is a cache: losing the file costs time, never a result. Safe to use from several threads."""

    def __init__(self, path: Path, root: Path | None = None):
        """`root`: paths below it are kept relative, so that a copied or moved repository knows its own files."""
        self._root = f"{root or path.parent}{os.sep}"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise  # locked, or the disk is full: the file may be whole
            # damaged: derived data, made anew
            for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
                name.unlink(missing_ok=True)
            self._db = _open(path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _name(self, path: Path) -> str:
        return str(path).removeprefix(self._root)

    # digests of files

    def digest(self, path: Path) -> str:
        """xxh3-128 of the file; read only if its stat is not the remembered one. Raises OSError."""
        before = signature(path)
        if (known := self.known(path, before)) is not None:
            return known
        while True:
            digest = digest_file(path)
            after = signature(path)
            if after == before:
                break
            before = after  # written while we read: once more
        self.remember(path, digest, before)
        return digest

    def digest_of(self, files: Sequence[Path], what: str, make: Callable[[], str]) -> str:
        """The digest of `what` these files hold, a part of a checkpoint, say; made only if the stat of one is not the
        remembered one. Raises OSError."""
        while True:
            signatures = [signature(path) for path in files]
            key = json.dumps([what, *zip(map(self._name, files), signatures, strict=True)])
            if (known := self.get(key)) is not None:
                return known
            young = any(map(racy, signatures))
            digest = make()
            if [signature(path) for path in files] == signatures:  # else written while we read: once more
                break
        if not young:
            self.put(key, digest)
        return digest

    def known(self, path: Path, seen: Signature) -> str | None:
        """The digest that is remembered of a file with this signature."""
        with self._lock:
            row = self._db.execute(
                "select size, mtime_ns, ctime_ns, ino, digest from file where path = ?", (self._name(path),)
            ).fetchone()
        return row[4] if row and row[:4] == seen else None

    def remember(self, path: Path, digest: str, seen: Signature | None = None, ours: bool = False) -> None:
        """Keep the digest of a file for the next run. `ours`: nobody else writes it, so that its age does not matter."""
        seen = seen or signature(path)
        if ours or not racy(seen):
            self.remember_all({path: (digest, seen)})

    def remember_all(self, digests: Mapping[Path, tuple[str, Signature]]) -> None:
        """Keep the digests of many files, which had these signatures when they were read, and were not racy then."""
        rows = [(self._name(path), *seen, digest) for path, (digest, seen) in digests.items()]
        self._together("replace into file values (?,?,?,?,?,?)", rows)

    def remembered(self, path: Path) -> Signature | None:
        """The signature that the file had when its digest was taken; None for one that is not known, or was too young."""
        with self._lock:
            return self._db.execute(
                "select size, mtime_ns, ctime_ns, ino from file where path = ?", (self._name(path),)
            ).fetchone()

    def forget(self, path: Path) -> None:
        """What is remembered of a file no longer holds: the next build reads it, and looks at the projects that have it."""
        with self._lock:
            self._db.execute("delete from file where path = ?", (self._name(path),))
            self._db.execute("delete from watch where instr(value, ?)", (json.dumps(str(path)),))

    # what stands in build/

    def published(self, path: Path) -> tuple[str, str] | None:
        """(fingerprint of what was published at `path`, digest of the file written)."""
        with self._lock:
            return self._db.execute(
                "select fingerprint, digest from published where path = ?", (self._name(path),)
            ).fetchone()

    def published_by(self, job: str) -> dict[Path, str]:
        """The files that `job` has published, with their digests."""
        with self._lock:
            rows = self._db.execute("select path, digest from published where job = ?", (job,)).fetchall()
        return {Path(self._root, path): digest for path, digest in rows}

    def publishers(self) -> list[str]:
        """The jobs that have files in build/."""
        with self._lock:
            return [job for (job,) in self._db.execute("select distinct job from published order by job")]

    def set_published(self, path: Path, job: str, fingerprint: str, digest: str) -> None:
        with self._lock:
            self._db.execute("replace into published values (?,?,?,?)", (self._name(path), job, fingerprint, digest))

    def drop_published(self, path: Path) -> None:
        with self._lock:
            self._db.execute("delete from published where path = ?", (self._name(path),))

    # what jobs were made of

    def last(self, job: str) -> tuple[str, str] | None:
        """(key, JSON of the key's components) of the job's last success."""
        with self._lock:
            return self._db.execute("select key, components from job where name = ?", (job,)).fetchone()

    def set_last(self, job: str, key: str, components: str) -> None:
        with self._lock:
            self._db.execute("replace into job values (?,?,?)", (job, key, components))

    # what projects were made from and have made, by the path of their manifest

    def watched(self) -> dict[str, str]:
        with self._lock:
            return dict(self._db.execute("select manifest, value from watch"))

    def set_watched(self, manifest: str, value: str) -> None:
        with self._lock:
            self._db.execute("replace into watch values (?,?)", (manifest, value))

    def drop_watched(self, manifest: str) -> None:
        with self._lock:
            self._db.execute("delete from watch where manifest = ?", (manifest,))

    # parsed manifests, digests of parts of files: text by a key that says all that it was made of

    def get(self, key: str) -> str | None:
        with self._lock:
            row = self._db.execute("select value, used from memo where key = ?", (key,)).fetchone()
            if row and time.time() - row[1] > DAY:
                self._db.execute("update memo set used = ? where key = ?", (time.time(), key))
        return row[0] if row else None

    def put(self, key: str, value: str) -> None:
        self.put_all({key: value})

    def put_all(self, values: Mapping[str, str]) -> None:
        """Keep many texts, in one transaction."""
        rows = [(key, value, time.time()) for key, value in values.items()]
        self._together("replace into memo values (?,?,?)", rows, "delete from memo where used < ?")

    def _together(self, statement: str, rows: Sequence[tuple], then: str = "") -> None:
        """One statement with many rows, in one transaction. `then`: another, with the time before which nobody asks."""
        with self._lock:
            self._db.execute("begin immediate")
            try:
                self._db.executemany(statement, rows)
                if then:
                    self._db.execute(then, (time.time() - 90 * DAY,))
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")
    db.executescript(SCHEMA)
    return db
