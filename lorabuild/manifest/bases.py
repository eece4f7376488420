"""Find a base on this machine: its file or folder lies in the repository or in a folder of `[models] dirs`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from lorabuild.errors import JobError, Problem
from lorabuild.manifest.layers import Reader
from lorabuild.manifest.merge import merge
from lorabuild.manifest.repository import SHARED_FILES, Repository
from lorabuild.manifest.values import PICKLES, SAFETENSORS, is_single_file
from lorabuild.names import quoted


def base_path(repository: Repository, base: str) -> Path | None:
    """The .safetensors file or the diffusers folder of a base; None for one that lorabuild makes itself.

    Raises JobError at the line of its `file`: not found, with a near miss, or of a kind that is not opened.
    """
    file = repository.bases[base].get("file")
    if file is None:
        return None
    given, places = Path(os.path.expanduser(file)), base_places(repository, base)
    suffix = given.suffix.casefold()
    if suffix in PICKLES:
        said = f"safetensors only: a {suffix} can run code when it is loaded"
    elif (found := next(filter(os.path.exists, places), None)) is None:
        said = "no such file or folder" + ("" if given.is_absolute() else f" {_looked_in(repository)}")
    elif found.is_dir() or is_single_file(found.name):
        return found
    else:
        said = f"neither a {SAFETENSORS} file nor a diffusers folder: {found}"
    near = _near_miss(file, (place.parent for place in places))
    raise JobError(_problem(repository, base, f"{quoted(file)}: {said}{near}"))


def base_places(repository: Repository, base: str) -> list[Path]:
    """Where the file or folder of a base may lie, in the order in which it is looked for; nowhere for a generated one."""
    file = repository.bases[base].get("file")
    if file is None:
        return []
    given = Path(os.path.expanduser(file))
    dirs = [] if given.is_absolute() else model_folders(repository)
    return [folder / given for folder in (repository.root, *dirs)]


def model_folders(repository: Repository) -> list[Path]:
    """`[models] dirs`."""
    return [repository.root / os.path.expanduser(path) for path in repository.model_dirs]


def _looked_in(repository: Repository) -> str:
    """Where a relative path was looked for, in the user's words."""
    dirs = repository.model_dirs
    if not dirs:
        return f"in the repository ([models] dirs in {SHARED_FILES[1]} names further places)"
    return f"in the repository and in {', '.join(map(quoted, dirs))}"


def _near_miss(file: str, folders: Iterable[Path]) -> str:
    """` (did you mean "x"?)`, of the bases in these folders. Without endings, which are alike whatever the name is."""
    names = {_stem(name): name for folder in folders for name in _bases_in(folder)}
    close = get_close_matches(_stem(Path(file).name), names, n=1)
    return f" (did you mean {quoted(str(Path(file).with_name(names[close[0]])))}?)" if close else ""


def _bases_in(folder: Path) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if is_single_file(name) or os.path.isdir(folder / name / "unet")]


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.casefold() in (SAFETENSORS, *PICKLES) else name


def _problem(repository: Repository, base: str, said: str) -> Problem:
    """What is wrong with a base's `file`, at its line."""
    reader = Reader(repository.root)
    layers = [layer for name in SHARED_FILES if (layer := reader.read(repository.root / name))]
    if not layers:  # gone since they were read
        return Problem(SHARED_FILES[0], 0, f"bases.{base}.file: {said}")
    place = merge(layers).place(("bases", base, "file"))
    return Problem(place.layer.file, place.line, f"bases.{base}.file: {said}")
