"""Gather what the report shows of every project, through the look that a build takes; nothing is built or written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorabuild.checks.last import remembered
from lorabuild.engine import Engine
from lorabuild.forecast.outlook import Outlook, outlooks
from lorabuild.history import Past, failure, history
from lorabuild.manifest import Project, Repository, load
from lorabuild.manifest.sources import source_path
from lorabuild.manifest.targets import maker, targets
from lorabuild.manifest.whence import Whence
from lorabuild.publish import published_path
from lorabuild.report.files import ProjectFiles, StageState
from lorabuild.session import opened
from lorabuild.stage import Job
from lorabuild.state import State
from lorabuild.verbs.status import state_of

# stage -> role of its output -> role in ProjectFiles; published ones stand in build/, the others in the store.
ROLES = {
    "train": {"weights": "trained", "log": "log", "facts.json": "facts"},
    "resize": {"weights": "resized"},
    "chop": {"weights": "chopped"},
    "dataset": {"dataset.json": "dataset"},
    "spectrum": {"spectrum": "spectrum"},
    "samples": {"samples.json": "samples"},
}
ALL_ROLES = ("source", "pictures", *(role for roles in ROLES.values() for role in roles.values()))


def collect(engine: Engine, repository: Repository) -> list[ProjectFiles]:
    """Every project in the order of names, variants within their project."""
    found = outlooks(engine, list(engine.jobs))
    pasts = history(engine.root / ".lorabuild" / "runs")
    whence = Whence(repository)
    states = {name: _state(engine, one, pasts.get(name, [])) for name, one in found.items()}
    return [_project(engine, project, whence, states) for project in repository.projects.values()]


def _state(engine: Engine, outlook: Outlook, pasts: list[Past]) -> StageState:
    name = outlook.job.name
    last = engine.state.last(name)
    record = engine.store.record(last[0]) if last else None
    failed = failure(pasts)
    return StageState(
        stage=outlook.job.stage,
        job=name,
        state=state_of(engine, outlook),
        why=tuple(outlook.why) if outlook.event != "fresh" else (),
        failure="; ".join(failed.why) if failed and outlook.event != "fresh" else None,
        key=last[0] if last else None,
        record=asdict(record) if record else None,
    )


def _project(engine: Engine, project: Project, whence: Whence, states: Mapping[str, StageState]) -> ProjectFiles:
    made: dict[str, ProjectFiles] = {}
    for target, settings in targets(project):
        jobs = dict(_jobs_of(target, settings, project, states))
        paths: dict[str, Path | None] = dict.fromkeys(ALL_ROLES)
        paths["source"] = source_path(project)
        for state in jobs.values():
            paths |= _paths(engine, state)
        if paths["samples"]:
            paths["pictures"] = paths["samples"].parent
        made[target] = ProjectFiles(
            name=target,
            root=engine.root,
            settings=settings,
            whence=dict(_spots(whence, target, settings)),
            paths=paths,
            states=jobs,
            snapshots=_snapshots(engine.root, project.name, states),
            checked=remembered(engine.state, project.name),
            swept=project.swept.get(target.partition("@")[2], {}),
        )
    whole = made.pop(project.name)
    variants = {target.partition("@")[2]: one for target, one in made.items()}
    return ProjectFiles(**{**vars(whole), "variants": variants})


def _jobs_of(
    target: str, settings: Mapping[str, Any], project: Project, states: Mapping[str, StageState]
) -> Iterator[tuple[str, StageState]]:
    """Stage -> the job of it that `target` is made by: a variant shares those of its project."""
    for stage in ("base", "norms", "dataset", "latents", "train", "spectrum", "resize", "chop", "samples"):
        match stage:
            case "base" | "norms":
                owner = settings["project"]["base"]
            case "resize" | "chop" if not settings[stage]:
                continue
            case _:
                owner = maker(project, target, stage)
        if (found := states.get(f"{stage}:{owner}")) is not None:
            yield stage, found


def _paths(engine: Engine, state: StageState) -> dict[str, Path]:
    """Role -> file, of what a job has made and still stands."""
    found = {}
    outputs = state.record["outputs"] if state.record else {}
    for role, shown in ROLES.get(state.stage, {}).items():
        if path := published_path(engine.root, Job(state.job, {}, {}, ()), role):
            known = path in engine.state.published_by(state.job)
        else:
            path = engine.store.blob(outputs[role]["digest"]) if role in outputs else None
            known = path is not None
        if known and path is not None and path.is_file():
            found[shown] = path
    return found


def _snapshots(root: Path, name: str, states: Mapping[str, StageState]) -> dict[int, Path]:
    """Step -> file, of the snapshots that stand in build/."""
    stem = f"{name}-step"
    found = {path.stem.removeprefix(stem): path for path in (root / "build" / name).glob(f"{stem}*.safetensors")}
    return {int(step): path for step, path in sorted(found.items()) if step.isdecimal()}


def _spots(whence: Whence, target: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Dotted key -> `file:line`, of each that somebody wrote."""
    for table, values in settings.items():
        for key in values if isinstance(values, Mapping) else ():
            if spot := whence.key(target, f"{table}.{key}"):
                yield f"{table}.{key}", f"{spot[0]}:{spot[1]}"


@contextmanager
def collected(root: Path) -> Iterator[tuple[list[ProjectFiles], State]]:
    """Open the repository as the reading verbs do; the projects, and the state that knows digests of files."""
    with opened(root, writing=False, building=False) as engine:
        yield collect(engine, load(root, engine.state)), engine.state
