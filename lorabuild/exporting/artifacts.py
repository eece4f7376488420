"""Find the LoRAs that are to be exported: artifacts of a project as they stand in build/, or any file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lorabuild.engine import Engine
from lorabuild.errors import JobError, UsageError, near_miss
from lorabuild.forecast.outlook import outlooks
from lorabuild.publish import NAMES, published_path
from lorabuild.stage import dependencies

WEIGHTS = "weights"
STAGE_OF = {"chopped": "chop", "resized": "resize", "trained": "train"}  # what a project makes last comes first
STEP, ALL = "step/", "all"


@dataclass(frozen=True)
class Lora:
    """A LoRA to be exported. `project` is None for a file of no project; `stale` says why a build would change it."""

    path: Path
    name: str
    project: str | None = None
    artifact: str | None = None
    preview: Path | None = None
    stale: Sequence[str] = ()


def any_file(path: Path) -> Lora:
    """A LoRA of no project, with the picture that stands beside it."""
    picture = path.with_suffix(".png")
    return Lora(path, path.stem, preview=picture if picture.is_file() else None)


def of_projects(engine: Engine, names: Iterable[str], which: str | None, variant: str | None) -> list[Lora]:
    """The artifact `which` of each project that `names` stand for, in their order; the last of its chain without one.

    A name is a project's, `project@variant`, or a glob. Raises UsageError with a near miss for what is no project, variant
    or artifact, and JobError, all at once, for what was not built or is not as it was built.
    """
    targets = list(dict.fromkeys(one for name in names for one in _targets(engine, name, variant)))
    wanted = [(target, *one) for target in targets for one in _wanted(engine, target, which)]
    problems = [said for target, job, role in wanted if (said := _unfit(engine, target, job, role))]
    if problems:
        raise JobError(*problems)
    stale = _stale(engine, {job for _, job, _ in wanted})
    return [_lora(engine, target, job, role, stale[job]) for target, job, role in wanted]


def _targets(engine: Engine, name: str, variant: str | None) -> list[str]:
    """Projects, or `project@variant`, that a name or a glob stands for."""
    known = sorted({job.project for job in engine.jobs.values() if job.project})
    variants = {job.target for job in engine.jobs.values() if "@" in job.target}
    pattern, _, own = name.partition("@")
    if own and variant and own != variant:
        raise UsageError(f"{name}: is variant {own}, and --variant says {variant}")
    found = [one for one in known if fnmatchcase(one, pattern)]
    if not found:
        raise UsageError(f"{name}: no such project or file{near_miss(pattern, known)}")
    if not (own or variant):
        return found
    targets = [f"{project}@{own or variant}" for project in found if f"{project}@{own or variant}" in variants]
    if not targets:
        theirs = [one.partition("@")[2] for one in sorted(variants) if one.partition("@")[0] in found]
        raise UsageError(f"{pattern}@{own or variant}: no such variant{near_miss(own or variant or '', theirs)}")
    return targets


def _wanted(engine: Engine, target: str, which: str | None) -> list[tuple[str, str]]:
    """(job, role) of the artifacts of a project or variant."""
    made = {artifact: job for artifact, stage in STAGE_OF.items() if (job := _job(engine, stage, target))}
    if not made:
        raise JobError(f"{target}: makes no LoRA")
    steps = _snapshots(engine, made["trained"]) if "trained" in made else {}
    if which == ALL:
        snapshots = [(made["trained"], f"{STEP}{step}") for step in steps]
        return [*snapshots, *((job, WEIGHTS) for _, job in reversed(made.items()))]
    if which is None:
        return [(next(iter(made.values())), WEIGHTS)]
    if which in made:
        return [(made[which], WEIGHTS)]
    if which in STAGE_OF:
        raise JobError(f"{target}: has no {which} file: its manifest makes {', '.join(made)}")
    step = which.removeprefix(STEP)
    if not which.startswith(STEP) or not step.isdecimal():
        choices = (*STAGE_OF, f"{STEP}10", ALL)
        raise UsageError(f"--artifact {which}: expected {', '.join(choices)}{near_miss(which, choices)}")
    if int(step) not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there are none"
        raise JobError(f"{target}: no snapshot of step {step} in build/: {there}")
    return [(made["trained"], f"{STEP}{int(step)}")]


def _job(engine: Engine, stage: str, target: str) -> str | None:
    """The job of a stage that the files of a project or variant are made by: variants share what they do not change."""
    own = [name for one in STAGE_OF.values() if (name := f"{one}:{target}") in engine.jobs]
    found = own[:1]
    for name in found:  # grows while it is walked: what the last one is made of
        found += [one for one in dependencies(engine.jobs[name], engine.jobs) if engine.jobs[one].project]
    return next((name for name in found if name.startswith(f"{stage}:")), None)


def _snapshots(engine: Engine, job: str) -> dict[int, Path]:
    """Step -> file, of the snapshots that stand in build/."""
    stem = published_path(engine.root, engine.jobs[job], WEIGHTS).stem
    start, _, end = NAMES["train"][STEP].replace("{stem}", stem).partition("{step:08d}")
    names = {path: path.name for path in engine.state.published_by(job) if path.exists()}
    steps = {
        int(number): path
        for path, name in names.items()
        if name.startswith(start) and (number := name.removeprefix(start).removesuffix(end)).isdecimal()
    }
    return dict(sorted(steps.items()))


def _path(engine: Engine, job: str, role: str) -> Path:
    """Where publish puts it."""
    path = published_path(engine.root, engine.jobs[job], role)
    assert path is not None  # a LoRA
    return path


def _unfit(engine: Engine, target: str, job: str, role: str) -> str:
    """Why an artifact cannot be exported, with the command that helps; empty if it can."""
    path = _path(engine, job, role)
    shown = path.relative_to(engine.root).as_posix()
    if not path.is_file():
        return f"{shown}: is not there: lorabuild build {job}"
    row = engine.state.published(path)
    if row is None or engine.state.digest(path) != row[1]:
        return f"{shown}: is not as it was built: lorabuild build {job} puts it right"
    return ""


def _stale(engine: Engine, jobs: Iterable[str]) -> dict[str, Sequence[str]]:
    """Job -> why a build would make it anew, or might; nothing of a fresh one."""
    found = outlooks(engine, sorted(jobs))
    return {job: [] if found[job].event == "fresh" else found[job].why or [found[job].event] for job in jobs}


def _lora(engine: Engine, target: str, job: str, role: str, stale: Sequence[str]) -> Lora:
    path = _path(engine, job, role)
    project = target.partition("@")[0]
    artifact = (
        role if role != WEIGHTS else next(one for one, stage in STAGE_OF.items() if stage == job.partition(":")[0])
    )
    row = engine.state.published(path)
    digest = row[0].partition(":")[0] if row else ""
    return Lora(path, path.stem, project, artifact, _preview(engine.root / "build" / project, digest), stale)


def _preview(folder: Path, digest: str) -> Path | None:
    """The first picture that `doit samples` drew with just these weights, if there is one."""
    try:
        drawn = json.loads((folder / NAMES["samples"]["samples.json"]).read_bytes())["pictures"]
        names = [one["file"] for one in drawn if isinstance(one, Mapping) and one.get("digest") == digest]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((path for name in names if (path := folder / str(name)).is_file()), None)
