"""Read one side of a comparison: a project as it stands, or as a commit has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorabuild import git
from lorabuild.engine import Engine
from lorabuild.errors import ConfigError, JobError, Problem, near_miss
from lorabuild.inputs import Resolved
from lorabuild.locks.locked import Line
from lorabuild.locks.lockfile import NAME, Lines, named_jobs, read, rows
from lorabuild.manifest import Repository, load
from lorabuild.manifest.repository import SHARED_FILES, Project
from lorabuild.manifest.targets import maker
from lorabuild.names import resolve_chop
from lorabuild.upkeep.recorded import recorded
from lorabuild.verbs.common import warn

Image = tuple[str, int, *tuple[str, ...]]  # caption, repeats, and where its folder differs, how, as JSON


@dataclass(frozen=True)
class Side:
    """One project as it is, or as it was at a commit. `images` by the digest of their pixels; None: not known here."""

    settings: Mapping[str, Mapping[str, Any]]  # variant, or "" for the project itself -> dotted key -> value
    made: Lines  # stage, or stage@variant
    images: Mapping[str, Sequence[Image]] | None
    names: Mapping[str, str] = field(default_factory=dict)  # digest of pixels -> file, where it is known


def present(engine: Engine, name: str, variant: str) -> Side:
    """A project of the working folder: what it has built, and where that is stale, what its lock says of the last time."""
    project = _project(load(engine.root, engine.state), name)
    settings = _settings_of(project, variant)
    lines = read(project.folder / NAME) or {}
    jobs = named_jobs(engine.jobs, name)
    found = recorded(engine, jobs)
    made = {job: Line(one.key, one.outputs) for job, one in found.items() if not one.missing}
    if behind := [job for job in jobs if job not in made and job in lines]:
        warn(f"not built as it stands now, compared as built last: {', '.join(behind)}")
    chosen = _chosen({job: line for job, line in lines.items() if job in jobs} | made, project, variant)
    inputs = found[f"dataset:{name}"].inputs if f"dataset:{name}" in found else {}
    return Side(settings, chosen, _images_of(engine, chosen), _names(engine, chosen, inputs))


def past(engine: Engine, revision: str, name: str, variant: str) -> Side:
    """A project at a commit, by its manifest, recipes and lock there. Raises JobError, and ConfigError for wrong TOML."""
    if not git.is_repository(engine.root):
        raise JobError(f"{revision}:{name}: this is no git repository")
    commit = git.commit(engine.root, revision)
    with git.objects(engine.root) as objects, TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        _check_out(engine.root, root, objects, commit, revision, name)
        try:
            project = _project(load(root, engine.state), name)
        except ConfigError as error:
            raise ConfigError(*(Problem(f"{revision}:{p.file}", p.line, p.message) for p in error.problems)) from None
        settings = _settings_of(project, variant)
        lock = (project.folder / NAME).relative_to(root).as_posix()
        lines = dict(rows((objects.file(commit, lock) or b"").decode(errors="replace")))
    chosen = _chosen(lines, project, variant)
    return Side(settings, chosen, _images_of(engine, chosen), _names(engine, chosen, {}))


def _check_out(ours: Path, root: Path, objects: git.Objects, commit: str, revision: str, name: str) -> None:
    """Write the TOML files that a project's settings are made of below `root`; a machine's own file is as it is now."""
    manifests = {path for path, _ in objects.files(commit, "projects", "lora.toml")}
    known = {Path(path).parent.name: path for path in sorted(manifests)}
    if name not in known:
        raise JobError(f"{revision}: has no project {name}{near_miss(name, known)}")
    recipes = [path for path, _ in objects.files(commit, "recipes") if path.endswith(".toml")]
    for path in (known[name], *recipes, SHARED_FILES[0]):
        if (data := objects.file(commit, path)) is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
    if (ours / SHARED_FILES[1]).is_file():
        shutil.copyfile(ours / SHARED_FILES[1], root / SHARED_FILES[1])


def _project(repository: Repository, name: str) -> Project:
    if name not in repository.projects:
        raise JobError(f"{name}: no such file or project{near_miss(name, repository.projects)}")
    return repository.projects[name]


def _settings_of(project: Project, variant: str) -> dict[str, dict[str, Any]]:
    """Every setting by its dotted key, chosen blocks by their weights: the project's and each variant's, or the one's."""
    if variant and variant not in project.variants:
        raise JobError(f"{project.name}@{variant}: no such variant{near_miss(variant, project.variants)}")
    if variant:
        return {"": _flat(project.variants[variant])}
    return {"": _flat(project.settings)} | {name: _flat(one) for name, one in sorted(project.variants.items())}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for table, values in settings.items():
        if table == "chop" and values:
            values = {"keep": resolve_chop(values), "allow_empty": values.get("allow_empty", False)}
        found |= _dotted(table, values) if isinstance(values, Mapping) else {}
    return found


def _dotted(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        found |= _dotted(f"{name}.{key}", value) if isinstance(value, Mapping) else {f"{name}.{key}": value}
    return {key: value for key, value in found.items() if value is not None}


def _chosen(lines: Lines, project: Project, variant: str) -> Lines:
    """The lines of a project by stage and variant, `chop@mini`; of a variant by stage, its own or those that it shares."""
    found: Lines = {}
    for job, line in lines.items():
        stage, _, target = job.partition(":")
        name, _, of_variant = target.partition("@")
        if name != project.name:
            continue
        if not variant:
            found[f"{stage}@{of_variant}" if of_variant else stage] = line
        elif target == _maker(project, variant, stage, lines):
            found[stage] = line
    return found


def _maker(project: Project, variant: str, stage: str, lines: Lines) -> str:
    """Whose job of a stage made a variant's files, of those that a lock has."""
    found = maker(project, f"{project.name}@{variant}", stage)
    return found if f"{stage}:{found}" in lines else project.name


# data


def _images_of(engine: Engine, made: Lines) -> dict[str, list[Image]] | None:
    """digest of pixels -> (caption, repeats) of each use, by dataset.json; None if the store does not have it."""
    if "dataset" not in made:
        return {}
    dataset = _json(engine, made["dataset"], "dataset.json")
    if dataset is None:
        return None
    found: dict[str, list[Image]] = {}
    for row in dataset["images"]:
        own = {**row.get("settings", {}), **({"is_reg": True} if "is_reg" in row else {})}
        said = [json.dumps(own, ensure_ascii=False, sort_keys=True)] if own else []
        found.setdefault(row["digest"], []).append((row["caption"], row["repeats"], *said))
    return found


def _names(engine: Engine, made: Lines, inputs: Mapping[str, Resolved]) -> dict[str, str]:
    """digest of pixels -> file. Only the working folder's names are known: they stand in no artifact."""
    shown = {image.digest: image.shown for one in inputs.values() for image in one.images}
    places = _json(engine, made["dataset"], "geometry.json") if "dataset" in made else None
    return {row["digest"]: shown[row["file"]] for row in places or () if row["file"] in shown}


def _json(engine: Engine, line: Line, role: str) -> Any:
    try:
        return json.loads(engine.store.blob(line.outputs[role].digest).read_bytes())
    except (OSError, ValueError, KeyError):
        return None
