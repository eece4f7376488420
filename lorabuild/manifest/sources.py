"""Judge a LoRA file that a project starts from or continues, and say what is wrong with it at its line of the manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lorabuild.errors import Problem, nearest
from lorabuild.manifest.continued import KEYS as INIT_KEYS
from lorabuild.manifest.layers import Reader, shown
from lorabuild.manifest.merge import merge
from lorabuild.manifest.repository import Project, Repository
from lorabuild.manifest.values import PICKLES, SAFETENSORS, is_single_file
from lorabuild.names import quoted


def source_path(project: Project) -> Path | None:
    """The file of `project.source`; None if there is no such key."""
    source = project.settings["project"]["source"]
    return project.folder / os.path.expanduser(source) if source else None


@dataclass(frozen=True)
class Sources:
    """Judges the LoRA files that the projects of a repository start from (`project.source`) or continue (`recipe.init`)."""

    repository: Repository

    def fault(self, path: Path, key: tuple[str, str]) -> str | None:
        """Why the file at `path`, which `key` names, cannot be used; None if it can. Its content is not looked at."""
        return _fault(self.repository.root / "build", path, key)

    def problem(self, name: str, said: str, key: tuple[str, str] = ("project", "source")) -> Problem:
        """`said` of a file of the project `name`, at the line where the `key` of the manifest, or a recipe below it, names it."""
        project, reader = self.repository.projects[name], Reader(self.repository.root)
        table, setting = key
        value = quoted(project.settings[table][setting])
        if (manifest := reader.read(project.manifest)) is None:  # gone since it was read
            return Problem(shown(project.manifest, self.repository.root), 0, f"{table}.{setting}: {value}: {said}")
        merged = merge(reader.stack(manifest)[0])
        written = next((one for one in INIT_KEYS if setting in INIT_KEYS and (table, one) in merged.origin), setting)
        place = merged.place((table, written))
        return Problem(place.layer.file, place.line, f"{table}.{written}: {value}: {said}")


def _fault(build: Path, path: Path, key: tuple[str, str]) -> str | None:
    suffix = path.suffix.casefold()
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(build)):
        other = "give the project that makes it a [variants.<name>]"
        if key == ("recipe", "init"):
            other = "name the project that makes it"
        return f"lies in build/, which is made from the manifests: copy the file beside this one, or {other}"
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
    close = nearest(path.stem, names)
    return "" if close is None else f" (did you mean {quoted(names[close])}?)"
