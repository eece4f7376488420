"""Make a job fresh: restore what was built once, build what was not, publish the rest."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorabuild.assess import Assessment, records_of
from lorabuild.builder import Builder
from lorabuild.errors import InputChanged, InputMissing, Interrupted, JobError, UserError, told
from lorabuild.files import is_empty, remove_empty
from lorabuild.locks.lockfile import Locks
from lorabuild.progress import one_line
from lorabuild.remotes.sharing import FROM_REMOTE, Sharing
from lorabuild.runlog import RunLog
from lorabuild.stage import Images, Job, present

FROM_ANOTHER = "made by a job with equal inputs"
RETRIES = 3  # how often a job is keyed anew when its input files change while they are read


@dataclass(kw_only=True)
class Engine(Builder):
    """One run over one repository. `fresh` and `realise` ask the same question, so they cannot disagree."""

    lock_files: Mapping[str, Path]  # project -> its lora.lock, there or not
    default: Sequence[str]  # the stages that a build without targets is for
    log: RunLog
    locks: Locks
    clean: Mapping[str, Sequence[str]] = field(default_factory=dict)  # projects left alone, with their fresh jobs
    sweeps: Mapping[str, str] = field(default_factory=dict)  # project -> what its [matrix] comes to
    settle: Callable[[Callable[[str], Mapping[Path, str | None] | None]], None] = lambda made_by: None
    sharing: Sharing | None = None  # the remote store, if there is one
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures: dict[str, str] = field(default_factory=dict)
    keep_going: bool = True  # after a failure: `--continue`
    _built: set[str] = field(default_factory=set)  # keys that this run has built

    # the two questions that doit asks

    def fresh(self, name: str) -> bool:
        """Is the job built, whole and published? An error is not raised here: `realise` meets it again and tells."""
        if name in self.anew or self.pool.slots.shut:
            return False
        try:
            found = self.assess(name)
            if found.missing or found.unpublished:
                return False
            self._remember(found)
            self.locks.note(found, now=False)
        except (UserError, OSError, sqlite3.Error):
            return False
        self.counts["fresh"] += 1
        return True

    def realise(self, name: str) -> None:
        """Build, restore or publish the job, and log what was done. Raises UserError in one line, and Interrupted."""
        if self.pool.slots.shut:
            raise Interrupted
        start = time.monotonic()
        try:
            try:
                event, why, notes = self._realise(name)
                seconds = time.monotonic() - start - self.waited[name]
                self.log.write(name, event, seconds, why, **notes)
            except (OSError, sqlite3.Error) as error:  # disk full, no permission: the machine's fault, in one line
                raise JobError(told(error, self.root)) from error
        except UserError as error:
            said = "; ".join(map(str, error.problems)) + self.advice(name, error)
            self._failed(name, said, time.monotonic() - start - self.waited[name])
            raise
        self.counts[event] += 1
        self.face.finished(name, event, seconds, why)

    # realisation

    def _realise(self, name: str) -> tuple[str, list[str], dict[str, Any]]:
        for _ in range(RETRIES):
            found = self.assess(name)
            with self._waiting(name, self._lock_of(found.key)):
                found = self._look(found)  # another job with this key may have built it while we waited
                fetched = bool(found.missing) and name not in self.anew and self._fetch(found)
                if fetched:
                    found = self._look(found)
                why, notes = [*[FROM_REMOTE] * (fetched and not found.missing), *self.why(found)], {}
                must_build = found.missing or (name in self.anew and found.key not in self._built)
                if must_build:
                    try:
                        notes = self.build(found)
                        self._built.add(found.key)
                    except InputChanged as change:
                        changed = change
                        self._resolver.forget_images()
                        continue
                    found = self._look(found)
                    if found.missing:
                        raise JobError(f"the job ended, but: {'; '.join(found.missing)}")
                    self._share(found)
            event = "built" if must_build else "published" if self.event_of(found) == "published" else "restored"
            for publication, _ in found.unpublished:
                self.publisher.publish(publication)
            self.assessed[name] = replace(found, unpublished=())
            self._remember(found)
            self.locks.note(found, now=True)
            return event, why or [FROM_ANOTHER], notes
        raise JobError(f"{changed.path} changes again and again while it is read")

    @contextmanager
    def _waiting(self, name: str, lock: threading.Lock) -> Iterator[None]:
        """Hold the lock of a key. While another job builds it, this one does nothing."""
        start = time.monotonic()
        with lock:
            self.waited[name] += time.monotonic() - start
            yield

    def _fetch(self, found: Assessment) -> bool:
        """Ask the remote for what is missing here. True if it had any of it."""
        wanted = records_of(found.job, found.key).items()
        lacking = {key: roles for key, roles in wanted if not present(roles, found.outputs)}
        return self.sharing is not None and self.sharing.fetch(lacking)

    def _share(self, found: Assessment) -> None:
        """Let the remote have what was built, and of a user's LoRA the metadata: headers are made of it."""
        if self.sharing is not None and self.sharing.uploads:
            self.sharing.offer(list(records_of(found.job, found.key)), self.metadata_of_sources(found))

    def _remember(self, found: Assessment) -> None:
        if not self._same_key(found):
            self.state.set_last(found.job.name, found.key, json.dumps(found.components))

    def _failed(self, name: str, message: str, seconds: float) -> None:
        message = one_line(message)
        self.counts["failed"] += 1
        self.failures[name] = message
        if not self.keep_going:
            self.pool.slots.shut_down()  # who waits for a slot is not begun any more
        with suppress(OSError):  # a disk that is full is told of already
            self.log.write(name, "failed", seconds, [message])
        self.face.failed(name, message)

    def unfilled(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the jobs that read an image folder in which nothing lies yet, and what is said of it."""
        found = {}
        for name in names:
            images = [item for item in self.jobs[name].inputs.values() if isinstance(item, Images) and item.captions]
            for subset in [one for item in images for one in item.subsets]:
                if is_empty(subset.folder):
                    error = InputMissing(f"{subset.shown}: no images in it yet", "its images are")
                    found[name] = f"{error}{self.advice(name, error)}"
        return found

    def leave_out(self, name: str, message: str) -> None:
        """The job cannot be built yet, which is told as a failure, and is no reason to stop others."""
        self.counts["failed"] += 1
        self.failures[name] = message
        self.log.write(name, "failed", 0.0, [message])
        self.face.failed(name, message)

    # the end of a run

    def made_by(self, name: str) -> dict[Path, str | None] | None:
        """The files of a job that this run found or made fresh, with their digests, None for a record; None if it did not."""
        found = self.assessed.get(name)
        if found is None or found.missing or found.unpublished or name in self.failures:
            return None
        published = {one.path: self.state.published(one.path) for one in self._publications(found)}
        if None in published.values():
            return None
        blobs = {self.store.blob(output.digest): output.digest for output in found.outputs.values()}
        records = [found.key, *(f"{found.key}/{role}" for role in found.job.snapshots)]
        return {
            **{path: row[1] for path, row in published.items() if row},
            **blobs,
            **dict.fromkeys(map(self.store.record_path, records)),
        }

    def tidy(self) -> list[Path]:
        """Remove from build/ and the locks what this run found no longer wanted: a snapshot, a chop whose table is gone.

        Files of a project that is no longer there are left alone, and so is a file that somebody has changed.
        """
        self._clear_scratch()
        if self.away:
            self.away.tidy(lambda key: self.store.record(key) is not None)
        self.locks.flush()
        removed: list[Path] = []
        for name in self.state.publishers():
            project = Job(name, {}, {}, ()).project
            found = self.assessed.get(name)
            if found and not found.missing and name in self.jobs:
                wanted = [publication.path for publication in self._publications(found)]
            elif name not in self.jobs and project in self.projects:
                wanted = []
            else:
                continue
            for path in self.publisher.retract(name, wanted):
                remove_empty(path.parent, self.root / "build")
                removed.append(path)
        return removed

    def _clear_scratch(self) -> None:
        """Remove what a run left of a job that was on record already when it was killed: a training's state is large."""
        done = {found.key for found in self.assessed.values() if not found.missing}
        scratch = self.root / ".lorabuild" / "scratch"
        for path in scratch.iterdir() if scratch.is_dir() else ():
            if path.name in done:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.removesuffix(".lock") in done:
                path.unlink(missing_ok=True)

    def forget(self, name: str) -> bool:
        """Drop the record of the job's present key, so that it is built again. True if there was one."""
        return self.store.drop_record(self.assess(name).key)
