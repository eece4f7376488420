"""Say at its line in the manifest what is wrong with the LoRA that a project starts from."""

from __future__ import annotations

from lorabuild.errors import Problem
from lorabuild.manifest.layers import Reader, shown
from lorabuild.manifest.merge import merge
from lorabuild.manifest.repository import Repository


def source_problem(repository: Repository, project: str, said: str) -> Problem:
    """`said` of the project's `source`, at the line where the manifest, or a recipe below it, names the file."""
    path, reader = repository.projects[project].manifest, Reader(repository.root)
    said = f"{said} (project.source)"
    if (manifest := reader.read(path)) is None:  # gone since it was read
        return Problem(shown(path, repository.root), 0, said)
    place = merge(reader.stack(manifest)[0]).place(("project", "source"))
    return Problem(place.layer.file, place.line, said)
