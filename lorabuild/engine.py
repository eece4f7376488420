"""Decide whether a job is fresh, and make it so: restore what was built once, build what was not, publish the rest."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorabuild.components import COMPONENTS_FILE, DIGESTING, component_digests, component_files
from lorabuild.errors import InputChanged, Interrupted, JobError, UserError, told
from lorabuild.files import empty_folder
from lorabuild.inputs import Resolved, Resolver, components, key_of
from lorabuild.lockfile import Locks
from lorabuild.manifest.sources import Sources
from lorabuild.pool import Pool
from lorabuild.progress import Face, one_line
from lorabuild.publish import Made, Publication, Publisher, base_folder, publications
from lorabuild.reasons import FEW, Reason, changes
from lorabuild.runlog import RunLog
from lorabuild.sharing import FROM_REMOTE, Sharing
from lorabuild.slots import Place
from lorabuild.stage import Artifact, Component, File, Job, Stage
from lorabuild.state import State
from lorabuild.store import Output, Record, Store

RETRIES = 3  # how often a job is keyed anew when its input files change while they are read


@dataclass(frozen=True)
class Assessment(Made):
    """What a look at a job found. Nothing in `missing` and nothing in `unpublished`: fresh."""

    key: str
    missing: Sequence[str] = ()  # why it must be built, if it must
    unpublished: Sequence[tuple[Publication, str]] = ()  # files to write, with the reason of each


@dataclass
class Engine:
    """One run over one repository. `fresh` and `realise` ask the same question, so they cannot disagree."""

    root: Path
    stages: Mapping[str, Stage]
    jobs: Mapping[str, Job]
    lock_files: Mapping[str, Path]  # project -> its lora.lock, there or not
    projects: Mapping[str, Mapping[str, Any]]  # [project] of each manifest: what headers tell beside the settings
    base_path: Callable[[str], Path | None]  # the file or folder of a base; None for one that a job makes
    sources: Sources  # judges the LoRAs that projects start from
    default: Sequence[str]  # the stages that a build without targets is for
    store: Store
    state: State
    publisher: Publisher
    pool: Pool
    log: RunLog
    locks: Locks
    face: Face
    clean: Mapping[str, Sequence[str]] = field(default_factory=dict)  # projects left alone, with their fresh jobs
    settle: Callable[[Callable[[str], Mapping[Path, str | None] | None]], None] = lambda made_by: None
    sharing: Sharing | None = None  # the remote store, if there is one
    advice: Callable[[str, UserError], str] = lambda name, error: ""  # what the user can do about a failed job
    anew: frozenset[str] = frozenset()
    assessed: dict[str, Assessment] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures: dict[str, str] = field(default_factory=dict)
    interrupted: dict[str, str] = field(default_factory=dict)  # job -> what is kept of it, "step 8 of 12"
    keep_going: bool = True  # after a failure: `--continue`
    _built: set[str] = field(default_factory=set)  # keys that this run has built
    _waited: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # job -> seconds, for a slot or a key
    _keys: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._resolver = Resolver(self.state, self._artifact, self._component, self.sources)

    def check_sources(self, names: Sequence[str]) -> None:
        """Look at the LoRAs that the projects of these jobs start from, before anything is built for them.

        Raises JobError with all that is wrong.
        """
        projects = {self.jobs[name].project for name in names}
        jobs = [job for job in self.jobs.values() if job.project in projects]
        problems = []
        for project, item in {(job.project, item) for job in jobs for item in job.inputs.values()}:
            try:
                if isinstance(item, File):
                    self._resolver.source(item, project)
            except JobError as error:
                advice = self.advice(f"source:{project}", error)
                problems += [replace(one, message=one.message + advice) for one in error.problems]
        if problems:
            raise JobError(*sorted(problems))

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
                seconds = time.monotonic() - start - self._waited[name]
                self.log.write(name, event, seconds, why, **notes)
            except (OSError, sqlite3.Error) as error:  # disk full, no permission: the machine's fault, in one line
                raise JobError(told(error, self.root)) from error
        except UserError as error:
            said = "; ".join(map(str, error.problems)) + self.advice(name, error)
            self._failed(name, said, time.monotonic() - start - self._waited[name])
            raise
        self.counts[event] += 1
        self.face.finished(name, event, seconds, why)

    # assessment

    def assess(self, name: str) -> Assessment:
        """Look at a job whose inputs are built: its key, what the store holds of it, what stands in build/."""
        job = self.jobs[name]
        stage = self.stages[job.stage]
        inputs = self._resolver.resolve(job)
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
            for role in roles:
                if record is None or role not in record.outputs:
                    missing.append("never built" if record_key == key else f"{role}: never built")
                elif not self.whole(record.outputs[role]):
                    missing.append(f"{role}: blob damaged or gone")
                else:
                    outputs[role] = record.outputs[role]
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

    def _publications(self, found: Assessment, outputs: Mapping[str, Output] | None = None) -> list[Publication]:
        project = self.projects.get(found.job.project, {})
        lineage = self._lineage(found.job.name)
        return publications(self.root, found.job, found.outputs if outputs is None else outputs, lineage, project)

    def _lineage(self, name: str) -> dict[str, Assessment]:
        """The job and its ancestors by name: what an artifact's header tells of. All were assessed before it."""
        lineage = {name: self.assessed[name]}
        for item in self.jobs[name].inputs.values():
            if (parent := getattr(item, "job", None)) is not None:
                lineage |= self._lineage(parent)
        return lineage

    def _artifact(self, job: str, role: str) -> tuple[str, Path]:
        output = self._outputs_of(job).get(role)
        if output is None:
            raise JobError(f"{job} has no output {role}")
        return output.digest, self.store.blob(output.digest)

    def _component(self, base: str, name: str) -> tuple[str, Path]:
        path = self.base_path(base)
        if path is not None:
            return self._component_of(path, name), path
        listing = self._outputs_of(f"base:{base}")[COMPONENTS_FILE]
        digests = json.loads(self.store.blob(listing.digest).read_bytes())
        return digests[name], base_folder(self.root, base)

    def _component_of(self, path: Path, name: str) -> str:
        """The digest of a part of a user's base: seven gigabytes are read once, not once a job."""
        with self._lock_of(str(path)):  # who waits finds what the first one has read
            what = f"component {DIGESTING} {name}"
            return self.state.digest_of(component_files(path, name), what, lambda: self._digested(path, name))

    def _digested(self, path: Path, name: str) -> str:
        """Read a component, with a bar: it takes seconds of a fast disk, and minutes of a slow one."""
        job = f"digest of {path.name}, {name}"
        self.face.started(job, ["read once; later its stat will do"])
        try:
            return component_digests(
                path, [name], lambda done, total: self.face.progress(job, done >> 20, total >> 20, "MiB")
            )[name]
        finally:
            self.face.ended(job)

    def _outputs_of(self, name: str) -> Mapping[str, Output]:
        if name not in self.assessed:
            self.assess(name)
        found = self.assessed[name]
        if found.missing:
            raise JobError(f"{name} is not built")
        return found.outputs

    # realisation

    def _realise(self, name: str) -> tuple[str, list[str], dict[str, Any]]:
        for _ in range(RETRIES):
            found = self.assess(name)
            with self._waiting(name, self._lock_of(found.key)):
                found = self._look(found)  # another job with this key may have built it while we waited
                fetched = bool(found.missing) and name not in self.anew and self._fetch(found)
                if fetched:
                    found = self._look(found)
                why, notes = [*[FROM_REMOTE] * (fetched and not found.missing), *self._why(found)], {}
                must_build = found.missing or (name in self.anew and found.key not in self._built)
                if must_build:
                    try:
                        notes = self._build(found)
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
            return event, why, notes
        raise JobError(f"{changed.path} changes again and again while it is read")

    @contextmanager
    def _waiting(self, name: str, lock: threading.Lock) -> Iterator[None]:
        """Hold the lock of a key. While another job builds it, this one does nothing."""
        start = time.monotonic()
        with lock:
            self._waited[name] += time.monotonic() - start
            yield

    def _build(self, found: Assessment) -> dict[str, Any]:
        """Run the job in a worker as soon as it has a slot."""
        with self.pool.slots.place(self.stages[found.job.stage].slot) as place:
            self._waited[found.job.name] += place.waited
            return self._build_at(place, found)

    def _build_at(self, place: Place, found: Assessment) -> dict[str, Any]:
        """Run the job in a worker and put what it made into the store; the record comes last."""
        job, key = found.job, found.key
        stage = self.stages[job.stage]
        folder = self.root / ".lorabuild" / "scratch" / key
        if job.name in self.anew:
            empty_folder(folder)
        start = time.monotonic()
        outputs: dict[str, Output] = {}
        made_with: dict[str, str] = {}
        made_from = {role: self._record_key(item) for role, item in job.inputs.items() if isinstance(item, Artifact)}

        def saved(role: str, output: Output) -> None:
            blob = self.store.blob(output.digest)
            self.state.remember(blob, output.digest, ours=True)
            if role not in job.snapshots:
                outputs[role] = output
            elif not self._keeps(f"{key}/{role}", job):
                self.store.put_record(f"{key}/{role}", record({role: output}))
                self._publish_early(found, role, output)

        def record(outputs: Mapping[str, Output], pieces: Sequence[str] = ()) -> Record:
            digests = {role: one.digest for role, one in found.inputs.items()}
            seconds = round(time.monotonic() - start, 3)
            return Record(
                stage.name, stage.version, job.params, digests, outputs, tuple(pieces), seconds, made_with, made_from
            )

        self.face.started(job.name, self._why(found))
        try:
            result = self.pool.run(
                self._spec(found, folder),
                place,
                saved=saved,
                progress=lambda done, total, text: self.face.progress(job.name, done, total, text),
                warn=lambda text: self.face.warn(f"{job.name}: {text}"),
            )
        except Interrupted as stop:
            self.interrupted[job.name] = stop.kept
            self.face.stopped(job.name, stop.kept)
            raise
        made_with.update(result["made_with"])
        self._unchanged(found)
        if not self._keeps(key, job):
            self.store.put_record(key, record(outputs, result["pieces"]))
        self._built.add(key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
        return result["notes"]

    def _record_key(self, item: Artifact) -> str:
        """The key of the record that names an artifact."""
        key = self.assessed[item.job].key
        return f"{key}/{item.role}" if item.role in self.jobs[item.job].snapshots else key

    def _fetch(self, found: Assessment) -> bool:
        """Ask the remote for what is missing here. True if it had any of it."""
        wanted = records_of(found.job, found.key).items()
        lacking = {key: roles for key, roles in wanted if not all(role in found.outputs for role in roles)}
        return self.sharing is not None and self.sharing.fetch(lacking)

    def _share(self, found: Assessment) -> None:
        """Let the remote have what was built, and of a user's LoRA the metadata: headers are made of it."""
        if self.sharing is not None and self.sharing.uploads:
            self.sharing.offer(list(records_of(found.job, found.key)), self.metadata_of_sources(found))

    def metadata_of_sources(self, found: Assessment) -> dict[str, dict[str, str]]:
        """By digest, the metadata of each LoRA of the user's that the job reads."""
        digests = {
            item.path: found.inputs[role].digest for role, item in found.job.inputs.items() if isinstance(item, File)
        }
        return {digest: self.publisher.metadata_of(path, digest) for path, digest in digests.items()}

    def _unchanged(self, found: Assessment) -> None:
        """A user's file, or base, is read by the job itself: raises InputChanged if it is no longer what the key says."""
        for role, item in found.job.inputs.items():
            if isinstance(item, File) and self.state.digest(item.path) != found.inputs[role].digest:
                raise InputChanged(item.path)
            path = self.base_path(item.base) if isinstance(item, Component) else None
            if path is not None and self._component_of(path, item.name) != found.inputs[role].digest:
                raise InputChanged(path)

    def _keeps(self, record_key: str, job: Job) -> bool:
        """Is there a record that stays? Other bytes under the same key would only disturb who holds the first ones."""
        record = self.store.record(record_key)
        return record is not None and job.name not in self.anew and all(map(self.whole, record.outputs.values()))

    def _spec(self, found: Assessment, folder: Path) -> dict[str, Any]:
        """All that a worker is told: plain data."""
        job = found.job
        run = self.stages[job.stage].run
        have = [] if job.name in self.anew else [role for role in job.snapshots if role in found.outputs]
        networks, files = self._networks(job, found)
        return {
            "name": job.name,
            "run": f"{run.__module__}:{run.__name__}",
            "params": job.params,
            "options": {**job.options, "have_steps": have},
            "outputs": list(job.outputs),
            "snapshots": list(job.snapshots),
            "inputs": {
                role: {
                    "digest": one.digest,
                    "path": str(one.path) if one.path else None,
                    "images": [
                        {k: str(v) if isinstance(v, Path) else v for k, v in vars(i).items()} for i in one.images
                    ],
                }
                for role, one in found.inputs.items()
            },
            "store": str(self.store.root),
            "folder": str(folder),
            "anew": job.name in self.anew,
            "base": {component: found.inputs[role].digest for role, component in networks.items()},
            "loads": 2 * sum(path.stat().st_size for path in files),  # from half to single precision they double
        }

    def _networks(self, job: Job, found: Assessment) -> tuple[dict[str, str], set[Path]]:
        """What a job loads of a base, role -> component, and the files that it reads for that."""
        items = {role: item for role, item in job.inputs.items() if isinstance(item, Component)}
        networks = {role: item.name for role, item in items.items() if not item.name.startswith("tokenizer")}
        if self.stages[job.stage].slot != "gpu":  # measures the weights, by byte ranges
            return {}, set()
        paths = [(found.inputs[role].path, component) for role, component in networks.items()]
        return networks, {file for path, component in paths if path for file in component_files(path, component)}

    def _publish_early(self, found: Assessment, role: str, output: Output) -> None:
        """A snapshot stands in build/ while its training goes on."""
        for publication in self._publications(found, {role: output}):
            if self.publisher.stale(publication):
                self.publisher.publish(publication)

    def _why(self, found: Assessment) -> list[str]:
        """The causes: a changed value if there is one, else what is missing or not as it was left."""
        return [reason.text for reason in self.reasons(found)]

    def _same_key(self, found: Assessment) -> bool:
        last = self.state.last(found.job.name)
        return last is not None and last[0] == found.key

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

    def _lock_of(self, key: str) -> threading.Lock:
        with self._mutex:
            return self._keys[key]

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

    def known_inputs(self, name: str, roles: Collection[str]) -> dict[str, Resolved]:
        """Some inputs of a job, of which others may not be made yet. Raises JobError."""
        job = self.jobs[name]
        return self._resolver.resolve(replace(job, inputs={role: job.inputs[role] for role in roles}))

    def tidy(self) -> list[Path]:
        """Remove from build/ and the locks what this run found no longer wanted: a snapshot, a chop whose table is gone.

        Files of a project that is no longer there are left alone, and so is a file that somebody has changed.
        """
        self._clear_scratch()
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
            removed += self.publisher.retract(name, wanted)
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

    def seconds_of(self, names: Sequence[str]) -> list[float | None]:
        """How long each of these jobs took when it was built last; None for what was never built here."""
        lasts = [self.state.last(name) for name in names]
        records = [self.store.record(last[0]) if last else None for last in lasts]
        return [record.seconds if record else None for record in records]


def records_of(job: Job, key: str) -> dict[str, Sequence[str]]:
    """The records of a job, by key, with the outputs that each names: one for the job, one for each snapshot."""
    return {key: job.outputs, **{f"{key}/{role}": [role] for role in job.snapshots}}
