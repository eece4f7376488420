"""Tell what a training continues from (`recipe.init`): another project, or a file; refuse circles and unknown names."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.errors import Problem, near_miss
from lorabuild.manifest.layers import Reader
from lorabuild.manifest.merge import merge
from lorabuild.manifest.values import is_file_name
from lorabuild.names import quoted

if TYPE_CHECKING:
    from lorabuild.manifest.repository import Project

KEYS = ("init", "network_weights")  # sd-scripts' name for it is the second


def init_project(settings: Mapping[str, Any]) -> str | None:
    """The project whose weights a training continues; None if it continues none of this repository."""
    init = settings.get("recipe", {}).get("init")
    return init if init and not is_file_name(init) else None


def init_path(project: Project) -> Path | None:
    """The file that a training continues, if it is one; seen from the manifest, as all paths are."""
    init = project.settings.get("recipe", {}).get("init")
    return project.folder / os.path.expanduser(init) if init and is_file_name(init) else None


def init_problems(projects: Mapping[str, Project], known: Collection[str], reader: Reader) -> Iterator[Problem]:
    """What is wrong with the projects that others continue. `known`: the names of all, also of those that are not loaded."""
    circles: set[frozenset[str]] = set()
    for name, project in projects.items():
        if (other := init_project(project.settings)) is None or _is_idle(project):
            continue
        said = ""
        if other not in known:
            said = f"no such project{near_miss(other, known)}; a file's name ends with .safetensors"
        elif other in projects and projects[other].settings and _is_idle(projects[other]):
            said = "starts from a file itself (project.source): name that file"
        elif (circle := _circle(name, projects)) and frozenset(circle) not in circles:
            circles.add(frozenset(circle))
            said = f"a circle: {' -> '.join(circle)}"
        if said:
            yield _problem(project, other, said, reader)


def _is_idle(project: Project) -> bool:
    """Is nothing trained of it?"""
    return bool(project.settings["project"]["source"])


def _circle(name: str, projects: Mapping[str, Project]) -> list[str]:
    """The projects from `name` back to itself; [] if it does not come back."""
    chain = [name]
    while (other := init_project(projects[chain[-1]].settings)) in projects and other not in chain[1:]:
        assert other is not None
        chain.append(other)
        if other == name:
            return chain
    return []


def _problem(project: Project, other: str, said: str, reader: Reader) -> Problem:
    manifest = reader.read(project.manifest)
    assert manifest is not None  # it has been read
    merged = merge(reader.stack(manifest)[0])
    key = next(key for key in KEYS if ("recipe", key) in merged.origin)
    place = merged.place(("recipe", key))
    return Problem(place.layer.file, place.line, f"recipe.{key}: {quoted(other)}: {said}")
