"""Run one job, here or away, and put what it makes on record; the record comes last."""

from __future__ import annotations

import shutil
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.assess import Assessment, Assessor
from lorabuild.bases.layout import stored_bytes
from lorabuild.data.tokenizers import find_vocabulary
from lorabuild.errors import InputChanged, Interrupted
from lorabuild.executors.attend import attend, result
from lorabuild.executors.local import Local
from lorabuild.executors.protocol import Resources
from lorabuild.files import empty_folder
from lorabuild.inputs import Resolved
from lorabuild.making import Making
from lorabuild.stage import SOURCE, Artifact, Component, File, Input, Job, TextFile, dependencies
from lorabuild.store import Output
from lorabuild.workers.pool import Pool

if TYPE_CHECKING:
    from lorabuild.executors.away import Away
    from lorabuild.executors.sending import Pack


@dataclass(kw_only=True)
class Builder(Assessor):
    """Builds the jobs of one repository in one run: those of some stages by `away`, if there is one, all others here."""

    pool: Pool
    model_dirs: Sequence[Path]  # where the tokenizers of a single-file base are looked for, too
    away: Away | None = None
    wanted: Sequence[str] = ()  # the jobs that the run is for; none: all
    interrupted: dict[str, str] = field(default_factory=dict)  # job -> what is kept of it, "step 8 of 12"
    elsewhere: dict[str, str] = field(default_factory=dict)  # job -> where it goes on without us, "slurm 4242"
    begun: set[str] = field(default_factory=set)  # jobs
    waited: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # job -> seconds, for a slot or a key
    _urgencies: dict[str, float] = field(default_factory=dict)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._local = Local(self.pool, self.urgency)

    def build(self, found: Assessment) -> Mapping[str, Any]:
        """Have a job run; what is to be noted of it in the run log. Raises JobError, InputChanged and Interrupted."""
        work = self._build_away if self.away and found.job.stage in self.away.needs.stages else self._build_here
        try:
            return work(found)
        except Interrupted as stop:
            if stop.elsewhere:
                self.elsewhere[found.job.name] = stop.elsewhere
                self.face.note(f"{found.job.name} goes on: {stop.elsewhere}")
            elif found.job.name in self.begun:
                self.interrupted[found.job.name] = stop.kept
                self.face.stopped(found.job.name, stop.kept)
            raise

    def urgency(self, name: str) -> float:
        """Among jobs that wait, the largest goes first. Reckoned when the first one asks: see `lorabuild.rehearsal`."""
        with self._counting:
            if not self._urgencies:
                try:
                    self._urgencies = self._reckoned()
                except Exception:  # of whatever kind: no build fails for its order, and they go as they come
                    self._urgencies = dict.fromkeys(self.jobs, 0.0)
        return self._urgencies.get(name, 0.0)

    def _reckoned(self) -> dict[str, float]:
        """Seconds of each job and of what comes after it, by what they took before; where more than one heavy job may run at
        once, moved to where the build ends first on paper."""
        from lorabuild.rehearsal import priorities, tries_of
        from lorabuild.urgency import urgencies

        needs = {one: dependencies(job, self.jobs) for one, job in self.jobs.items()}
        seconds = dict(zip(self.jobs, self.seconds_of(list(self.jobs)), strict=True))
        room = self.pool.slots.room | ({"away": self.away.needs.jobs} if self.away else {})
        if max(room["gpu"], room.get("away", 0)) < 2 or not tries_of(len(self.jobs)):
            return urgencies(self.jobs, needs, seconds)
        from lorabuild.forecast.standing import stale

        takes = {one: self._takes(job) for one, job in self.jobs.items()}
        return priorities(self.jobs, needs, seconds, stale(self, self.wanted or self.jobs), takes, room)

    def _takes(self, job: Job) -> dict[str, int]:
        """The places that a job holds while it runs, by kind."""
        if self.away and job.stage in self.away.needs.stages:
            return {"away": 1}
        return self.pool.slots.takes(self.stages[job.stage].slot, job.options.get("processes", 1))[0]

    def seconds_of(self, names: Sequence[str]) -> list[float | None]:
        """How long each of these jobs took when it was built last; None for what was never built here."""
        lasts = [self.state.last(name) for name in names]
        records = [self.store.record(last[0]) if last else None for last in lasts]
        return [record.seconds if record and _is_time(record.seconds) else None for record in records]

    # here

    def _build_here(self, found: Assessment) -> Mapping[str, Any]:
        """Run the job in a worker as soon as it has a slot."""
        job, key = found.job, found.key
        folder = self.root / ".lorabuild" / "scratch" / key
        if job.name in self.anew:
            empty_folder(folder)
        making = Making(self, found)
        try:
            handle = self._local.submit(self._spec(found, folder), Resources())
            try:
                last = result(attend(self._local, handle, making.hear, making.begin_here))
            finally:
                self._local.cancel(handle)
        except InputChanged:
            shutil.rmtree(folder, ignore_errors=True)  # what is there may come from other bytes than the key says
            raise
        self.unchanged(found)
        if not self.keeps(key, job):
            self.store.put_record(key, making.record(making.outputs, last["pieces"], last["made_with"]))
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
        return last["notes"]

    # away

    def _build_away(self, found: Assessment) -> Mapping[str, Any]:
        """Have the executor run the job, and bring what it made into the store."""
        from lorabuild.executors.away import Order

        job, away = found.job, self.away
        assert away is not None
        with away.turn(self.urgency(job.name)) as waited:
            self.waited[job.name] += waited
            making = Making(self, found)
            making.begin()
            last = away.build(
                Order(
                    spec=self._spec_away(found, pack := self._packed(found)),
                    pack=pack,
                    resources=away.needs.resources(job.stage, job.options.get("processes", 1)),
                    began=making.runs_away,
                    hear=making.hear_away,
                    waits=lambda text: self.face.progress(job.name, 0, 1, text),
                    told=making.progress,
                    warn=making.warn,
                    collect=making.collect,
                )
            )
        return last["notes"]

    def _packed(self, found: Assessment) -> Pack:
        assert self.away is not None
        bases = {item.base for item in found.job.inputs.values() if isinstance(item, Component)}
        made = {base: self.assessed[f"base:{base}"].outputs for base in bases if f"base:{base}" in self.jobs}
        return self.away.sender.pack(found.job, found.inputs, made)

    def _spec_away(self, found: Assessment, pack: Pack) -> dict[str, Any]:
        """All that a worker elsewhere is told: see `lorabuild.executors.spec`."""
        from lorabuild.executors.spec import FORMAT

        assert self.away is not None
        job, stage = found.job, self.stages[found.job.stage]
        return {
            "format": FORMAT,
            "name": job.name,
            "stage": stage.name,
            "version": stage.version,
            "run": f"{stage.run.__module__}:{stage.run.__name__}",
            "key": found.key,
            "params": job.params,
            "options": {**travelling(job.options), **self._have(found)},
            "outputs": list(job.outputs),
            "snapshots": list(job.snapshots),
            "inputs": pack.inputs,
            "places": pack.places,
            "made_from": self.made_from(job),
            "metadata": self.metadata_of_sources(found),
            "anew": job.name in self.anew,
            **self.away.needs.told(job.stage, job.options.get("processes", 1)),
        }

    # both

    def _have(self, found: Assessment) -> dict[str, Any]:
        """What of the outputs is there already, and need not be made."""
        anew = found.job.name in self.anew
        steps = [] if anew else [role for role in found.job.snapshots if role in found.outputs]
        rest = not anew and all(role in found.outputs for role in found.job.outputs)
        return {"have_steps": steps, "have_rest": rest}

    def made_from(self, job: Job) -> dict[str, str]:
        """Role -> the key of the record that the artifact comes from."""
        return {role: self._record_key(item) for role, item in job.inputs.items() if isinstance(item, Artifact)}

    def _record_key(self, item: Artifact) -> str:
        """The key of the record that names an artifact."""
        key = self.assessed[item.job].key
        return f"{key}/{item.role}" if item.role in self.assessed[item.job].job.snapshots else key

    def metadata_of_sources(self, found: Assessment) -> dict[str, dict[str, str]]:
        """By digest, the metadata of each LoRA of the user's that the job reads."""
        digests = {
            item.path: found.inputs[role].digest
            for role, item in found.job.inputs.items()
            if isinstance(item, File) and item.key == SOURCE
        }
        return {digest: self.publisher.metadata_of(path, digest) for path, digest in digests.items()}

    def unchanged(self, found: Assessment) -> None:
        """A user's file, or base, is read by the job itself: raises InputChanged if it is no longer what the key says."""
        for role, item in found.job.inputs.items():
            if isinstance(item, TextFile) and self.state.digest(item.path) != found.inputs[role].digest:
                raise InputChanged(item.path)
            if isinstance(item, File) and self._resolver.content(item) != found.inputs[role].digest:
                raise InputChanged(item.path)
            path = self.base_path(item.base, item.name) if isinstance(item, Component) else None
            if path is not None and self._component_of(path, item.name) != found.inputs[role].digest:
                raise InputChanged(path)

    def keeps(self, record_key: str, job: Job) -> bool:
        """Is there a record that stays? Other bytes under the same key would only disturb who holds the first ones."""
        record = self.store.record(record_key)
        return record is not None and job.name not in self.anew and all(map(self.whole, record.outputs.values()))

    def _spec(self, found: Assessment, folder: Path) -> dict[str, Any]:
        """All that a worker beside us is told: plain data."""
        job = found.job
        run = self.stages[job.stage].run
        networks, size = self._networks(job, found)
        return {
            "name": job.name,
            "slot": self.stages[job.stage].slot,
            "run": f"{run.__module__}:{run.__name__}",
            "params": job.params,
            "options": {**job.options, **self._have(found), "compiled": str(self.root / ".lorabuild" / "compiled")},
            "outputs": list(job.outputs),
            "snapshots": list(job.snapshots),
            "inputs": {
                role: {
                    "digest": one.digest,
                    "path": str(place) if (place := self._place(job.inputs[role], one)) else None,
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
            "loads": 2 * size,  # from half to single precision they double
        }

    def _place(self, item: Input, found: Resolved) -> Path | None:
        """Where a worker reads an input. Raises JobError for the tokenizers of a single-file base that are not found."""
        if isinstance(item, Component) and item.name.startswith("tokenizer") and found.path and found.path.is_file():
            return find_vocabulary(found.path, self.model_dirs)
        return found.path

    def _networks(self, job: Job, found: Assessment) -> tuple[dict[str, str], int]:
        """What a job loads of a base, role -> component, and how many bytes of files it reads for that."""
        items = {role: item for role, item in job.inputs.items() if isinstance(item, Component)}
        networks = {role: item.name for role, item in items.items() if not item.name.startswith("tokenizer")}
        if self.stages[job.stage].slot != "gpu":  # measures the weights, by byte ranges
            return {}, 0
        paths = [(found.inputs[role].path, component) for role, component in networks.items()]
        return networks, sum(stored_bytes(path, component) for path, component in paths if path)

    def publish_early(self, found: Assessment, role: str, output: Output) -> None:
        """A snapshot stands in build/ while its training goes on."""
        for publication in self._publications(found, {role: output}):
            if self.publisher.stale(publication):
                self.publisher.publish(publication)

    def why(self, found: Assessment) -> list[str]:
        """The causes: a changed value if there is one, else what is missing or not as it was left."""
        return [reason.text for reason in self.reasons(found)]


def travelling(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a job that mean something elsewhere: pictures and events of a running training are not sent back."""
    watch = {name: value for name, value in options.get("watch", {}).items() if name not in ("folder", "log_with")}
    kept = {name: value for name, value in options.items() if name not in ("samples", "watch")}
    return kept | ({"watch": watch} if watch else {})


def _is_time(seconds: Any) -> bool:
    """A record may be damaged."""
    return isinstance(seconds, int | float) and 0 <= seconds < inf
