"""Decide what a job is: fresh, to be published, restored or built, and why; nothing is made."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lorabuild.components import (
    COMPONENTS_FILE,
    DIGESTING,
    Told,
    component_digests,
    component_files,
    pinned_file,
)
from lorabuild.errors import JobError, UserError
from lorabuild.hashing import sha256_from
from lorabuild.inputs import Resolved, Resolver, components, key_of
from lorabuild.manifest.sources import Sources
from lorabuild.progress import Face
from lorabuild.publish import Made, Publication, Publisher, base_folder, publications
from lorabuild.reasons import FEW, Reason, changes
from lorabuild.stage import Artifact, File, Job, Stage, TextFile, is_family, members
from lorabuild.state import State
from lorabuild.store import Output, Store


@dataclass(frozen=True)
class Assessment(Made):
    """What a look at a job found. Nothing in `missing` and nothing in `unpublished`: fresh."""

    key: str
    missing: Sequence[str] = ()  # why it must be built, if it must
    unpublished: Sequence[tuple[Publication, str]] = ()  # files to write, with the reason of each


@dataclass(kw_only=True)
class Assessor:
    """Looks at the jobs of one repository in one run."""

    root: Path
    stages: Mapping[str, Stage]
    jobs: Mapping[str, Job]
    projects: Mapping[str, Mapping[str, Any]]  # [project] of each manifest: what headers tell beside the settings
    # base, component -> the file or folder that it lies in; None for what a job makes
    base_path: Callable[[str, str], Path | None]
    # base, component or "digest", what is wrong with it -> the same at its line
    base_fault: Callable[[str, str, JobError], JobError]
    pins: Mapping[str, str]  # base -> the first digits of its file's sha256
    sources: Sources  # judges the LoRAs that projects start from
    store: Store
    state: State
    publisher: Publisher
    face: Face
    anew: frozenset[str] = frozenset()
    assessed: dict[str, Assessment] = field(default_factory=dict)
    advice: Callable[[str, UserError], str] = lambda name, error: ""  # what the user can do about a failed job
    _keys: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._resolver = Resolver(self.state, self._artifact, self._component, self.sources)

    def assess(self, name: str) -> Assessment:
        """Look at a job whose inputs are built: its key, what the store holds of it, what stands in build/."""
        job = self.with_members(self.jobs[name])
        stage = self.stages[job.stage]
        inputs = self._resolver.resolve(job)
        if stage.snapshots:
            job = replace(job, snapshots=stage.snapshots(job, lambda role: _read(inputs[role])))
        key = key_of(stage.name, stage.version, job.params, inputs)
        parts = components(stage.version, job.params, inputs)
        return self._look(Assessment(job=job, inputs=inputs, components=parts, outputs={}, key=key))

    def _look(self, found: Assessment) -> Assessment:
        """The same key and inputs, and what is there of it now. The user's files are not looked at again."""
        outputs, missing = self._stored(found.job, found.key)
        found = self.assessed[found.job.name] = replace(found, outputs=outputs, missing=missing, unpublished=())
        if not missing:
            stale = [(publication, self.publisher.stale(publication)) for publication in self._publications(found)]
            found = replace(found, unpublished=[(publication, why) for publication, why in stale if why])
            self.assessed[found.job.name] = found
        return found

    def _stored(self, job: Job, key: str) -> tuple[dict[str, Output], list[str]]:
        """The outputs that the store holds whole, and why others are missing. A damaged blob is dropped."""
        outputs, missing = {}, []
        for record_key, roles in records_of(job, key).items():
            record = self.store.record(record_key)
            known = record.outputs if record else {}
            for role in chain.from_iterable(members(one, known) for one in roles):
                if role not in known:
                    missing.append("never built" if record_key == key else f"{role}: wanted, but never saved")
                elif not self.whole(known[role]):
                    missing.append(f"{role}: blob damaged or gone")
                else:
                    outputs[role] = known[role]
        return outputs, list(dict.fromkeys(missing))

    def whole(self, output: Output) -> bool:
        """Does the store hold it, undamaged? A damaged blob is dropped."""
        path = self.store.blob(output.digest)
        try:
            if self.state.digest(path) == output.digest:
                return True
        except OSError:
            return False
        self.store.drop(output.digest)
        return False

    def event_of(self, found: Assessment) -> str:
        """What it takes to make the job fresh: "built", "restored", "published" (only headers); "fresh" if nothing."""
        if found.missing:
            return "built"
        if not found.unpublished:
            return "fresh"
        only_headers = all(why == "header" for _, why in found.unpublished)
        return "published" if only_headers and self._same_key(found) else "restored"

    def reasons(self, found: Assessment, few: int = FEW) -> list[Reason]:
        """Why a job is stale: a changed value if there is one, else what is missing or not as it was left."""
        last = self.state.last(found.job.name)
        if found.job.name in self.anew:
            return [Reason("anew", "", "asked for anew")]
        if last and last[0] != found.key and (changed := changes(json.loads(last[1]), found.components, few)):
            return changed
        if found.missing:
            return [Reason("store", "", text) for text in (found.missing if last else ("never built",))]
        told: list[Reason] = []
        for publication, why in found.unpublished:
            name = publication.path.relative_to(self.root).as_posix()
            told += self.publisher.header_changes(publication, why) or [Reason("build", name, f"{name}: {why}")]
        return list(dict.fromkeys(told))

    def _same_key(self, found: Assessment) -> bool:
        last = self.state.last(found.job.name)
        return last is not None and last[0] == found.key

    def check_sources(self, names: Sequence[str]) -> None:
        """Look at the LoRAs that the projects of these jobs start from, and at the prompts that are drawn by those which
        train or draw, before anything is built for them.

        Raises JobError with all that is wrong.
        """
        projects = {self.jobs[name].project for name in names}
        drawing = {self.jobs[name].project for name in names if self.jobs[name].stage in ("train", "samples")}
        jobs = [job for job in self.jobs.values() if job.project in projects]
        problems = []
        for project, item in {(job.project, item) for job in jobs for item in job.inputs.values()}:
            try:
                if isinstance(item, TextFile) and project in drawing:
                    self._resolver.check_text(item, project)
                if isinstance(item, File):
                    self._resolver.source(item, project)
            except JobError as error:
                advice = self.advice(f"source:{project}", error)
                problems += [replace(one, message=one.message + advice) for one in error.problems]
        if problems:
            raise JobError(*sorted(problems))

    def known_inputs(self, name: str, roles: Collection[str]) -> dict[str, Resolved]:
        """Some inputs of a job, of which others may not be made yet. Raises JobError."""
        job = self.jobs[name]
        known = replace(job, inputs={role: job.inputs[role] for role in roles})
        return self._resolver.resolve(self.with_members(known))

    def with_members(self, job: Job) -> Job:
        """The job with the snapshots that are wanted in place of each family of them among its inputs. Raises JobError."""
        items = {role: item for role, item in job.inputs.items() if isinstance(item, Artifact) and is_family(item.role)}
        if not items:
            return job
        inputs = {role: item for role, item in job.inputs.items() if role not in items}
        for role, item in items.items():
            self._outputs_of(item.job)  # looks at it, and it has to be built
            for one in self.assessed[item.job].job.snapshots:
                member = one.removeprefix(item.role)
                if one.startswith(item.role) and int(member) % item.every == 0:
                    inputs[f"{role}{member}"] = Artifact(item.job, one)
        return replace(job, inputs=inputs)

    def _publications(self, found: Assessment, outputs: Mapping[str, Output] | None = None) -> list[Publication]:
        project = self.projects.get(found.job.project, {})
        lineage = self._lineage(found.job.name)
        return publications(self.root, found.job, found.outputs if outputs is None else outputs, lineage, project)

    def _lineage(self, name: str) -> dict[str, Assessment]:
        """The job and its ancestors by name: what an artifact's header tells of. All were assessed before it."""
        lineage = {name: self.assessed[name]}
        for item in self.jobs[name].lineage.values():
            lineage |= self._lineage(item.job)
        return lineage

    def _artifact(self, job: str, role: str) -> tuple[str, Path]:
        output = self._outputs_of(job).get(role)
        if output is None:
            raise JobError(f"{job} has no output {role}")
        return output.digest, self.store.blob(output.digest)

    def _component(self, base: str, name: str) -> tuple[str, Path]:
        path = self.base_path(base, name)
        if path is not None:
            self._check_pin(base)
            try:
                return self._component_of(path, name), path
            except JobError as error:
                raise self.base_fault(base, name, error) from None
        listing = self._outputs_of(f"base:{base}")[COMPONENTS_FILE]
        digests = json.loads(self.store.blob(listing.digest).read_bytes())
        return digests[name], base_folder(self.root, base)

    def _component_of(self, path: Path, name: str) -> str:
        """The digest of a part of a user's base: seven gigabytes are read once, not once a job."""
        with self._lock_of(str(path)):  # who waits finds what the first one has read
            what = f"component {DIGESTING} {name}"
            return self.state.digest_of(component_files(path, name), what, lambda: self._digested(path, name))

    def _check_pin(self, base: str) -> None:
        """Raises JobError where the file of a base is not the one that `digest` of lorabuild.toml means."""
        path = self.base_path(base, "unet")
        if (pin := self.pins.get(base)) is None or path is None:
            return
        try:
            file = pinned_file(path)
        except JobError as error:
            raise self.base_fault(base, "digest", error) from None
        with self._lock_of(str(path)):
            found = self.state.digest_of(
                [file], "sha256", lambda: self._with_bar(f"sha256 of {file.name}", lambda told: sha256_from(file, 0))
            )
        if not found.startswith(pin):
            said = f"{file}: its sha256 is {found}, not {pin}: another file, or another version of it"
            raise self.base_fault(base, "digest", JobError(said))

    def _digested(self, path: Path, name: str) -> str:
        job = f"digest of {path.name}, {name}"
        return self._with_bar(job, lambda told: component_digests(path, [name], told)[name])

    def _with_bar(self, job: str, digest: Callable[[Told], str]) -> str:
        """Read much of a base, with a bar: it takes seconds of a fast disk, and minutes of a slow one."""
        self.face.started(job, ["read once; later its stat will do"])
        try:
            return digest(lambda done, total: self.face.progress(job, done >> 20, total >> 20, "MiB"))
        finally:
            self.face.ended(job)

    def _outputs_of(self, name: str) -> Mapping[str, Output]:
        if name not in self.assessed:
            self.assess(name)
        found = self.assessed[name]
        if found.missing:
            raise JobError(f"{name} is not built")
        return found.outputs

    def _lock_of(self, key: str) -> threading.Lock:
        with self._mutex:
            return self._keys[key]


def _read(made: Resolved) -> bytes:
    assert made.path is not None  # an artifact
    return made.path.read_bytes()


def records_of(job: Job, key: str) -> dict[str, Sequence[str]]:
    """The records of a job, by key, with the outputs that each names: one for the job, one for each snapshot."""
    return {key: job.outputs, **{f"{key}/{role}": [role] for role in job.snapshots}}
