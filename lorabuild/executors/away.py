"""Have jobs built on other machines: send them, follow them, begin those that are lost again, and find them later."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from lorabuild.errors import Interrupted, JobError
from lorabuild.executors.attend import attend, result
from lorabuild.executors.handles import Handles, Note
from lorabuild.executors.needs import Needs
from lorabuild.executors.protocol import Event, Executor, Resources, Status
from lorabuild.executors.sending import Pack, Sender
from lorabuild.remotes.remote import Damaged, Remote
from lorabuild.remotes.transport import Unreachable
from lorabuild.workers.pool import log_name

PAUSE_SECONDS = 0.2  # between two polls of an executor that had nothing to tell and did not wait itself
ANEW_SECONDS = 7 * 86400.0  # how long a job of a build that was killed counts as what `-a` asks for now
LEAVING_SECONDS = 3.0  # in which a second Ctrl-C cancels what runs there


@dataclass(frozen=True)
class Order:
    """One job to be built. `collect` brings what it has made into the store, by the name of its record, and returns what
    is still missing; it raises Unreachable, and Damaged for what it has dropped, so that another try makes it again."""

    spec: Mapping[str, Any]  # but for its record
    pack: Pack
    resources: Resources
    began: Callable[[], None]  # it runs
    hear: Callable[[Event, str], None]  # an event, and the name of the job's record
    waits: Callable[[str], None]  # what it waits for, in words
    told: Callable[[int, int, str], None]  # of uploads
    warn: Callable[[str], None]
    collect: Callable[[str], list[str]]


@dataclass
class Away:
    """The jobs of one run that an executor of this `kind` has."""

    open: Callable[[], Executor]
    kind: str
    needs: Needs
    remote: Remote
    sender: Sender
    handles: Handles
    logs: Path
    kept_logs: dict[str, Path]  # job -> its log, of those that have one
    begins_no_more: Callable[[], bool] = bool
    _executor: Executor | None = None
    _leaving: float | None = None
    _flying: dict[str, Note] = field(default_factory=dict)  # by key
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._free, self._line, self._room = self.needs.jobs, list[tuple[float, int]](), threading.Condition()
        self._numbers = count()
        self.sender.left = lambda: self.left

    @contextmanager
    def turn(self, urgency: float = 0.0) -> Iterator[float]:
        """Wait until one more job may be under way, the most urgent first; how many seconds that took. Raises Interrupted if
        the build stops."""
        start = time.monotonic()
        with self._room:
            me = -urgency, next(self._numbers)
            self._line.append(me)
            try:
                while not self._room.wait_for(lambda: self._free > 0 and min(self._line) == me, timeout=0.5):
                    self._go_on()
                self._free -= 1
            finally:
                self._line.remove(me)
                self._room.notify_all()  # there may be room for who is next
        try:
            self._go_on()
            yield time.monotonic() - start
        finally:
            with self._room:
                self._free += 1
                self._room.notify_all()

    def build(self, order: Order) -> Event:
        """The event that the job ended with, when all that it has made is in the store.

        A job that is under way since an earlier run is found again. Raises JobError, InputChanged, and Interrupted.
        """
        name = order.spec["name"]
        try:
            return self._build(order)
        except Unreachable as error:
            raise JobError(f"{name} needs the store {self.remote.folder.url}: {error}") from None

    def leave(self) -> None:
        """Wait for nothing any more: what is under way goes on, and is found again by its note."""
        self._leaving = time.monotonic()

    @property
    def executor(self) -> Executor:
        """Opened when there is a first job: a build with nothing to do needs none."""
        with self._mutex:
            self._executor = self._executor or self.open()
            return self._executor

    @property
    def left(self) -> bool:
        return self._leaving is not None

    @property
    def flying(self) -> int:
        """How many jobs are under way."""
        return len(self._flying)

    def cancel(self) -> int:
        """End all that is under way. How many jobs that were."""
        with self._mutex:
            notes = dict(self._flying)
        threads = [threading.Thread(target=self._cancel, args=one, daemon=True) for one in notes.items()]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return len(notes)

    def tidy(self, on_record: Callable[[str], bool]) -> None:
        """Forget notes of jobs that are done. Of one that is built anew the key was on record before: the next `-a` asks."""
        for key in self.handles.noted():
            note = self.handles.read(key)
            anew = note is not None and note.record != key and time.time() - note.since < ANEW_SECONDS
            if on_record(key) and not anew:
                self.handles.drop(key)

    def _build(self, order: Order) -> Event:
        key, name, executor = order.spec["key"], order.spec["name"], self.executor
        note, why = self._found(order), ""
        record = note.record if note else f"{key}/anew/{uuid.uuid4().hex[:12]}" if order.spec["anew"] else key
        tries, damaged = self.needs.tries + bool(note), set[str]()
        for attempt in range(1, tries + 1):
            if note is None:
                self.sender.upload(order.pack, order.told, damaged)
                self._go_on()
                note = self._submit(executor, order, record)
            last, why = self._followed(order, key, note, damaged)
            if last and last["event"] == "done":
                try:
                    missing = order.collect(record)
                except Damaged as error:
                    why = str(error)
                else:
                    why = f"it has not made {', '.join(missing)}"
                    if not missing:
                        self.handles.drop(key)
                        return last
            self.handles.drop(key)
            if last and last["event"] not in ("done", "stopped"):
                result(last)
            if attempt < tries:
                order.warn(f"{why or 'lost'} ({self.kind} {note.handle}); begun again, {attempt + 1} of {tries}")
            note = None
        for digest in damaged:  # of the right size, so that the next build would not upload it
            self.remote.drop_blob(digest)
        raise JobError(
            f"begun {tries} time{'s' * (tries > 1)} with {self.kind}, and not done: {why or 'lost'}{self._last_line(name)}"
        )

    def _found(self, order: Order) -> Note | None:
        """The note of this job, if it is under way already."""
        key = order.spec["key"]
        note = self.handles.read(key)
        if note is None or note.kind != self.kind:
            return None
        if order.spec["anew"] and note.record == key:  # not what is asked for
            self._cancel(key, note)
            return None
        return note

    def _submit(self, executor: Executor, order: Order, record: str) -> Note:
        key, name = order.spec["key"], order.spec["name"]
        handle = executor.submit({**order.spec, "record": record}, order.resources)
        note = Note(name, self.kind, handle, record)
        self.handles.write(key, note)
        return note

    def _followed(self, order: Order, key: str, note: Note, damaged: set[str]) -> tuple[Event | None, str]:
        """The job's last event, and what is to be said of a job that has none, or was stopped."""
        words = [""]
        damaged.clear()

        def looked(status: Status) -> None:
            words[0] = status.text or words[0]
            if status.state == "waiting":
                order.waits(status.text)
            if self._leaving is not None and time.monotonic() > self._leaving + LEAVING_SECONDS:
                raise Interrupted(elsewhere=f"{self.kind} {note.handle}")

        def hear(event: Event) -> None:
            if event["event"] == "lacking":
                damaged.update(event["digests"])
            order.hear(event, note.record)

        with self._mutex:
            self._flying[key] = note
        try:
            last = attend(self.executor, note.handle, hear, order.began, looked, PAUSE_SECONDS)
        finally:
            with self._mutex:
                self._flying.pop(key, None)
        self._keep_log(note)
        stopped = last and last["event"] == "stopped"
        return last, (last.get("why") or "it was stopped") if last and stopped else words[0]

    def _keep_log(self, note: Note) -> None:
        with suppress(OSError):
            if text := self.executor.logs(note.handle):
                log = self.logs / log_name(note.job)
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text(text)
                self.kept_logs[note.job] = log

    def _last_line(self, job: str) -> str:
        """The last that a lost job has printed: often it is the cause."""
        log = self.kept_logs.get(job)
        lines = log.read_text().split("\n") if log else []
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"; its last line: {said}" if said else ""

    def _cancel(self, key: str, note: Note) -> None:
        self.executor.cancel(note.handle)
        self.handles.drop(key)

    def _go_on(self) -> None:
        if self.left or self.begins_no_more():
            raise Interrupted
