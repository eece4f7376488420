"""Judge the LoRA file that a project starts from, and say what is wrong with it at the line of its `source`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lorabuild.errors import Problem
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
    """Judges the LoRAs that the projects of a repository start from."""

    repository: Repository

    def fault(self, path: Path) -> str | None:
        """Why the file at `path` cannot be a source; None if it can. Its content is not looked at."""
        return _fault(self.repository.root / "build", path)

    def problem(self, name: str, said: str, key: tuple[str, str] = ("project", "source")) -> Problem:
        """`said` of a file of the project `name`, at the line where the `key` of the manifest, or a recipe below it, names it."""
        project, reader = self.repository.projects[name], Reader(self.repository.root)
        whole = f"{'.'.join(key)}: {quoted(project.settings[key[0]][key[1]])}: {said}"
        if (manifest := reader.read(project.manifest)) is None:  # gone since it was read
            return Problem(shown(project.manifest, self.repository.root), 0, whole)
        place = merge(reader.stack(manifest)[0]).place(key)
        return Problem(place.layer.file, place.line, whole)


def _fault(build: Path, path: Path) -> str | None:
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
