"""Open a repository for one command: manifests, jobs, state, store, and for a build also lock, run log and workers."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lorabuild.engine import Engine
from lorabuild.errors import JobError, UsageError, near_miss, told
from lorabuild.executors.choose import away_of
from lorabuild.files import empty_folder
from lorabuild.locks.lock import build_lock
from lorabuild.locks.locked import pull_advice
from lorabuild.locks.lockfile import NAME as LOCK
from lorabuild.locks.lockfile import Locks
from lorabuild.manifest import Repository, load
from lorabuild.manifest.bases import base_fault, component_path, model_folders
from lorabuild.manifest.sources import Sources
from lorabuild.manifest.targets import sweep
from lorabuild.names import REPORT
from lorabuild.progress import face
from lorabuild.publish import Publisher
from lorabuild.remotes.sharing import Sharing, remote_of
from lorabuild.runlog import RunLog
from lorabuild.scan import Scan
from lorabuild.stage import Job, dependencies
from lorabuild.stages import STAGES
from lorabuild.state import State
from lorabuild.store import Store
from lorabuild.watch import Watches
from lorabuild.workers.pool import Pool
from lorabuild.workers.slots import Slots, cuda_devices


@contextmanager
def opened(root: Path, writing: bool, building: bool, wanted: Container[str] | None = None) -> Iterator[Engine]:
    """The engine of one command. `writing`: hold the lock; `building`: keep a run log. Raises ConfigError for wrong TOML,
    and JobError where the state can be neither opened nor used, here or in the block.

    With `wanted`, names of projects, others are left alone where nothing of them has changed: they stand in `clean`.
    """
    hidden = root / ".lorabuild"
    with ExitStack() as stack:
        stack.enter_context(_state_in_one_line())
        shown = face(None if building else sys.stderr)  # else standard output is for what was asked
        stack.callback(shown.close)
        if writing:
            stack.enter_context(build_lock(hidden, shown.warn))
        state = _state(hidden / "state.sqlite", root, writing, stack)
        stack.callback(state.close)
        uploads = stack.enter_context(ExitStack())  # waited for when no worker holds memory or a GPU any more
        pool = Pool(hidden / "logs")
        stack.callback(pool.close)
        scan = Scan()
        watches = Watches(root, state, scan)
        clean = (
            {}
            if wanted is None
            else {path: jobs for path, jobs in watches.clean().items() if path.parent.name not in wanted}
        )
        memo = _Memo(state, pool.start_early if building else lambda: None)
        repository = load(root, memo, scan, clean.__contains__)
        for warning in repository.warnings if building else ():
            shown.warn(str(warning))
        pool.open(Slots(repository.slots["gpu"], repository.slots["cpu"], cuda_devices))
        store = Store(hidden / "store", reading=not writing, max_gb=repository.store["max_gb"])
        if writing:
            empty_folder(store.parts)  # what a killed run was writing
        clean = {path: names for path, names in clean.items() if path.parent.name not in repository.projects}
        jobs = jobs_of(repository)
        folders = {name: project.folder for name, project in repository.projects.items()}
        needed = needed_by_projects(repository, jobs)
        watches.look(repository, jobs, needed)
        lock_files = {name: project.folder / "lora.lock" for name, project in repository.projects.items()}
        sharing = Sharing(
            remote_of(repository.store, store), state, store, repository.store["read_only"], shown.warn, shown.note
        )
        uploads.enter_context(sharing)
        away = (
            away_of(
                repository.executor,
                repository.store["remote"],
                root,
                STAGES,
                store,
                state,
                pool,
                model_folders(repository),
                shown.warn,
            )
            if building
            else None
        )
        yield Engine(
            root=root,
            stages=STAGES,
            jobs=jobs,
            lock_files=lock_files,
            projects={name: project.settings["project"] for name, project in repository.projects.items()},
            base_path=partial(component_path, repository),
            base_fault=partial(base_fault, repository),
            pins={name: one["digest"] for name, one in repository.bases.items() if one.get("digest")},
            model_dirs=model_folders(repository),
            sources=Sources(repository),
            default=repository.build_default,
            store=store,
            state=state,
            publisher=Publisher(store, state),
            pool=pool,
            log=RunLog(hidden / "runs", building),
            locks=Locks(folders, jobs, store.parts, shown.warn, kept=building),
            face=shown,
            clean={path.parent.name: names for path, names in clean.items()},
            sweeps={name: said for name, one in repository.projects.items() if (said := sweep(one))},
            settle=partial(_settle, watches, repository, needed),
            sharing=sharing,
            away=away,
            advice=partial(pull_advice, lock_files, repository.store["remote"]),
        )


@contextmanager
def state_of(root: Path) -> Iterator[State]:
    """What is remembered of a repository, for a verb that asks nothing else of it. Raises JobError as `opened` does."""
    with _state_in_one_line(), ExitStack() as stack:
        state = _state(root / ".lorabuild" / "state.sqlite", root, False, stack)
        stack.callback(state.close)
        yield state


def _state(path: Path, root: Path, writing: bool, stack: ExitStack) -> State:
    """Who only reads, and may not write here, gets a copy."""
    try:
        return State(path, root)
    except (OSError, sqlite3.OperationalError):
        if writing:
            raise
        copy = Path(stack.enter_context(TemporaryDirectory()), path.name)
        for suffix in ("", "-wal"):
            if (part := path.with_name(path.name + suffix)).is_file():
                shutil.copyfile(part, copy.with_name(part.name))
        return State(copy, root)


@contextmanager
def _state_in_one_line() -> Iterator[None]:
    """A disk that is full, a file that may not be opened: the machine's fault, and no traceback. Raises JobError."""
    try:
        yield
    except sqlite3.Error as error:
        raise JobError(told(error)) from error


def _settle(
    watches: Watches,
    repository: Repository,
    needed: Mapping[str, Sequence[str]],
    made_by: Callable[[str], Mapping[Path, str | None] | None],
) -> None:
    """Note each loaded project of which all is fresh. One that there is a warning for is looked at, and told, each time."""
    watches.forget_gone()
    for name, project in repository.projects.items():
        made = [made_by(job) for job in needed[name]]
        if None not in made and not project.idle:
            files = {path: digest for one in made for path, digest in one.items()}
            watches.settle(project, needed[name], files | {project.folder / LOCK: None})


def needed_by_projects(repository: Repository, jobs: Mapping[str, Job]) -> dict[str, list[str]]:
    """Project -> its jobs that a build without targets is for, and all that they depend on."""
    found: dict[str, list[str]] = {name: [] for name in repository.projects}
    for name, job in jobs.items():
        if job.project and job.stage in repository.build_default:
            found[job.project].append(name)
    for names in found.values():
        for name in names:  # grows while it is walked
            names += [one for one in dependencies(jobs[name], jobs) if one not in names]
    return {name: sorted(names) for name, names in found.items()}


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


def targets(jobs: Mapping[str, Job], projects: Iterable[str]) -> dict[str, list[str]]:
    """What a user can name: each job, each stage with its jobs, each project with its own, if it has any, and of these those
    of a variant: `ember@mini`."""
    found: dict[str, list[str]] = {project: [] for project in projects}
    for name, job in jobs.items():
        found[name] = [name]
        groups = {job.stage, job.project, job.target} if job.project else {job.stage}
        for group in groups:
            found.setdefault(group, []).append(name)
    return found


def selected(names: Sequence[str], engine: Engine) -> list[str]:
    """The jobs that `names` stand for; those of the stages of a plain build if there are none.

    Raises UsageError with a near miss.
    """
    names = [name for name in names if name != REPORT]  # without jobs of its own: it tells of what a build makes
    if not names:
        return [name for name, job in engine.jobs.items() if job.stage in engine.default]
    known = targets(engine.jobs, engine.projects)
    for name in names:
        if name not in known:
            clean = engine.clean
            near = near_miss(name, [*known, REPORT, *clean, *(job for jobs in clean.values() for job in jobs)])
            raise UsageError(f"{name}: no such target{near}; `doit list --all` shows them")
    return list(dict.fromkeys(job for name in names for job in known[name]))
