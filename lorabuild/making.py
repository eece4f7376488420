"""Follow one job while it is built: what it tells is shown, what it makes is put on record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorabuild.assess import Assessment, records_of
from lorabuild.executors.attend import told_by
from lorabuild.executors.protocol import Event
from lorabuild.remotes.remote import Damaged
from lorabuild.remotes.sharing import note_fetched
from lorabuild.remotes.transport import Unreachable
from lorabuild.stage import present
from lorabuild.store import Output, Record

if TYPE_CHECKING:
    from lorabuild.builder import Builder


@dataclass
class Making:
    """One job that is being built: what it tells, and what of it is on record."""

    builder: Builder
    found: Assessment
    outputs: dict[str, Output] = field(default_factory=dict)
    asked: float = field(default_factory=time.monotonic)
    start: float = 0.0

    def begin(self) -> None:
        """It has its place: it is told of, and timed."""
        name = self.found.job.name
        self.start = time.monotonic()
        self.builder.begun.add(name)
        self.builder.face.started(name, self.builder.why(self.found))

    def begin_here(self) -> None:
        self.begin()
        self.builder.waited[self.found.job.name] += self.start - self.asked
        self.builder.unchanged(self.found)  # it may have waited for its slot for hours

    def runs_away(self) -> None:
        """What it took until here is no time of its own: files were sent, and it stood in a queue."""
        now = time.monotonic()
        self.builder.waited[self.found.job.name] += now - self.start
        self.start = now

    def progress(self, done: int, total: int, text: str) -> None:
        self.builder.face.progress(self.found.job.name, done, total, text)

    def warn(self, text: str) -> None:
        self.builder.face.warn(f"{self.found.job.name}: {text}")

    def hear(self, event: Event) -> None:
        """What a worker here tells. A snapshot is on record, and stands in build/, when this is over."""
        told_by(event, self.progress, self.warn)
        if event["event"] == "saved":
            self._saved(event["role"], Output(event["digest"], event["size"]))

    def hear_away(self, event: Event, record: str) -> None:
        """A snapshot is brought as soon as it is there; what does not come now comes when the job is done."""
        told_by(event, self.progress, self.warn)
        role = event["role"] if event["event"] == "saved" else ""
        if role in self.found.job.snapshots and role not in self.outputs:
            with suppress(Damaged, Unreachable):
                brought = self._bring(f"{record}/{role}", key := f"{self.found.key}/{role}", [role])
                if brought and (kept := self.builder.store.record(key)):  # of two workers the first one's
                    self.outputs[role] = kept.outputs[role]
                    self.builder.publish_early(self.found, role, self.outputs[role])

    def collect(self, record: str) -> list[str]:
        """Bring all that is not here yet of what the job has made; what of it is not there.

        Raises Damaged for what is not as its record says; that is dropped there, so that another try makes it again.
        """
        found, missing = self.found, []
        wanted = records_of(found.job, found.key).items()
        anew = found.job.name in self.builder.anew
        theirs = {key: record + key.removeprefix(found.key) for key, _ in wanted}
        for key, roles in wanted:
            if (anew or not present(roles, found.outputs)) and not self._brought(theirs[key], key, roles):
                missing += roles
        if record != found.key and not missing:
            assert self.builder.away is not None
            for name in theirs.values():
                self.builder.away.remote.drop(name)
        return missing

    def record(
        self, outputs: Mapping[str, Output], pieces: Sequence[str] = (), made_with: Mapping[str, str] | None = None
    ) -> Record:
        found, job = self.found, self.found.job
        stage = self.builder.stages[job.stage]
        digests = {role: one.digest for role, one in found.inputs.items()}
        seconds = round(time.monotonic() - self.start, 3)
        head = stage.name, stage.version, job.params, digests
        return Record(*head, outputs, tuple(pieces), seconds, made_with or {}, self.builder.made_from(job))

    def _saved(self, role: str, output: Output) -> None:
        builder, found = self.builder, self.found
        builder.unchanged(found)  # before it is on record under this key; a worker that has read other bytes ends
        builder.state.remember(builder.store.blob(output.digest), output.digest, ours=True)
        if role not in found.job.snapshots:
            self.outputs[role] = output
        elif not builder.keeps(f"{found.key}/{role}", found.job):
            builder.store.put_record(f"{found.key}/{role}", self.record({role: output}))
            builder.publish_early(found, role, output)

    def _brought(self, theirs: str, key: str, roles: Sequence[str]) -> bool:
        """As `_bring`, twice if need be, as the way may have damaged it. What is damaged there is dropped."""
        with suppress(Damaged):
            return self._bring(theirs, key, roles)
        try:
            return self._bring(theirs, key, roles)
        except Damaged as error:
            assert self.builder.away is not None
            self.builder.away.remote.drop(theirs, error.blob)
            raise

    def _bring(self, theirs: str, key: str, roles: Sequence[str]) -> bool:
        """Fetch the record `theirs` and keep it as that of `key`. False if there is none."""
        builder = self.builder
        assert builder.away is not None
        remote = builder.away.remote
        remote.expect(theirs)
        shared = remote.fetch(theirs, roles)
        if shared is None:
            return False
        note_fetched(shared, builder.state, builder.store)
        if theirs != key and (record := builder.store.record(theirs)):
            builder.store.put_record(key, record)
        return True
