"""Judge the LoRA file that a project starts from, and say what is wrong with it at the line of its `source`."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from lorabuild.errors import Problem
from lorabuild.manifest.layers import Reader
from lorabuild.manifest.merge import merge
from lorabuild.manifest.repository import Project, Repository
from lorabuild.manifest.values import PICKLES, SAFETENSORS, is_single_file
from lorabuild.names import quoted


def source_path(project: Project) -> Path | None:
    """The file of `project.source`; None if there is no such key."""
    source = project.settings["project"]["source"]
    return project.folder / os.path.expanduser(source) if source else None


def source_problem(repository: Repository, path: Path) -> Problem | None:
    """Why the file at `path`, the source of a project, cannot be one; None if it can. Its content is not looked at."""
    said = _said(repository.root / "build", path)
    if said is None:
        return None
    project = next(one for one in repository.projects.values() if source_path(one) == path)
    reader = Reader(repository.root)
    manifest = reader.read(project.manifest)
    layers, _ = reader.stack(manifest) if manifest else ([], [])
    whole = f"project.source: {quoted(project.settings['project']['source'])}: {said}"
    if not layers:  # gone since it was read
        return Problem(project.name, 0, whole)
    place = merge(layers).place(("project", "source"))
    return Problem(place.layer.file, place.line, whole)


def _said(build: Path, path: Path) -> str | None:
    suffix = path.suffix.casefold()
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(build)):
        return (
            "lies in build/, which is made from the manifests: copy the file beside this one, "
            "or give the project that makes it a [variants.<name>]"
        )
    if suffix in PICKLES:
        return f"safetensors only: a {suffix} can run code when it is loaded"
    if not path.exists():
        return f"no such file{_near_miss(path)}"
    if path.is_dir():
        return f"a folder; a {SAFETENSORS} file was expected"
    if not path.is_file():
        return "not a regular file"
    return None if is_single_file(path.name) else f"a {SAFETENSORS} file was expected"


def _near_miss(path: Path) -> str:
    """` (did you mean "x"?)`, of the LoRAs in the same folder. Without endings, which are alike whatever the name is."""
    names = {one.stem: one.name for one in sorted(path.parent.glob("*")) if is_single_file(one.name)}
    close = get_close_matches(path.stem, names, n=1)
    return f" (did you mean {quoted(names[close[0]])}?)" if close else ""
