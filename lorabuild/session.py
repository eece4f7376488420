"""Open a repository for one command: manifests, jobs, state, store, and for a build also lock, run log and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorabuild.engine import Engine
from lorabuild.files import empty_folder
from lorabuild.lock import build_lock
from lorabuild.lockfile import Locks
from lorabuild.manifest import Repository, load
from lorabuild.manifest.bases import base_path
from lorabuild.pool import Pool
from lorabuild.progress import face
from lorabuild.publish import Publisher
from lorabuild.runlog import RunLog
from lorabuild.stage import Artifact, Component, Job
from lorabuild.stages import STAGES
from lorabuild.state import State
from lorabuild.store import Store


@contextmanager
def opened(root: Path, writing: bool, building: bool) -> Iterator[Engine]:
    """The engine of one command. `writing`: hold the lock; `building`: keep a run log. Raises ConfigError for wrong TOML."""
    hidden = root / ".lorabuild"
    with ExitStack() as stack:
        shown = face()
        stack.callback(shown.close)
        if writing:
            stack.enter_context(build_lock(hidden, shown.warn))
        state = State(hidden / "state.sqlite", root)
        stack.callback(state.close)
        pool = Pool(hidden / "logs")
        stack.callback(pool.close)
        repository = load(root, memo=_Memo(state, pool.start_early if building else lambda: None))
        pool.open(repository.slots["cpu"])
        store = Store(hidden / "store", repository.store["max_gb"])
        if writing:
            empty_folder(store.parts)  # what a killed run was writing
        jobs = jobs_of(repository)
        folders = {name: project.folder for name, project in repository.projects.items()}
        locks = Locks(folders, jobs, store.parts, shown.warn, kept=building)
        yield Engine(
            root=root,
            stages=STAGES,
            jobs=jobs,
            projects={name: project.settings["project"] for name, project in repository.projects.items()},
            base_path=partial(base_path, repository),
            default=repository.build_default,
            store=store,
            state=state,
            publisher=Publisher(store, state),
            pool=pool,
            log=RunLog(hidden / "runs", building),
            locks=locks,
            face=shown,
        )


@dataclass(frozen=True)
class _Memo:
    """The state's memory of manifests. A manifest that is not in it has changed, so that there will be work."""

    state: State
    on_miss: Callable[[], None]

    def get(self, key: str) -> str | None:
        found = self.state.get(key)
        if found is None:
            self.on_miss()
        return found

    def put(self, key: str, value: str) -> None:
        self.state.put(key, value)


def jobs_of(repository: Repository) -> dict[str, Job]:
    """Every job of every project, by name, in the order of the stages."""
    return {job.name: job for stage in STAGES.values() for job in stage.jobs(repository)}


def dependencies(job: Job, jobs: Mapping[str, Job]) -> list[str]:
    """Those of `jobs` whose results `job` needs, in no particular order and each once. A user's base is made by none."""
    needed = []
    for item in job.inputs.values():
        if isinstance(item, Artifact):
            needed.append(item.job)
        elif isinstance(item, Component) and f"base:{item.base}" in jobs:
            needed.append(f"base:{item.base}")
    return list(dict.fromkeys(needed))


def targets(jobs: Mapping[str, Job]) -> dict[str, list[str]]:
    """What a user can name: each job, each stage with its jobs, each project with its own."""
    found: dict[str, list[str]] = {}
    for name, job in jobs.items():
        found[name] = [name]
        found.setdefault(job.stage, []).append(name)
        if job.stage not in ("base", "norms"):
            found.setdefault(job.target.partition("@")[0], []).append(name)
    return found
