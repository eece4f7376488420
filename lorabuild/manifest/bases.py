"""Find a base on this machine: its file or folder lies in the repository or in a folder of `[models] dirs`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorabuild.bases.layout import CLIP_SKIP
from lorabuild.errors import JobError, Problem, nearest
from lorabuild.manifest.layers import Reader
from lorabuild.manifest.merge import merge
from lorabuild.manifest.repository import SHARED_FILES, Repository
from lorabuild.manifest.values import PICKLES, SAFETENSORS, is_single_file
from lorabuild.names import quoted


def base_path(repository: Repository, base: str, key: str = "file") -> Path | None:
    """The .safetensors file or the diffusers folder that `file` or `vae` of a base names; None where it names none.

    Raises JobError at the line of the key: not found, with a near miss, or of a kind that is not opened.
    """
    file = repository.bases[base].get(key)
    if file is None:
        return None
    given, places = Path(os.path.expanduser(file)), base_places(repository, base, key)
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
    raise JobError(base_problem(repository, base, f"{quoted(file)}: {said}{near}", key))


def base_params(repository: Repository, base: str) -> dict[str, Any]:
    """What [bases.<name>] says of the base that shapes what is trained on it, and drawn: beside the weights themselves."""
    settings = repository.bases[base]
    skip = {"clip_skip": settings["clip_skip"]} if "clip_skip" in settings else {}
    return {"prediction_type": settings.get("prediction_type", "epsilon"), **skip}


def clip_skip_of(params: Mapping[str, Any]) -> int:
    """Which hidden states of the text encoders a base is meant to be used with, by its `base_params`."""
    return params.get("clip_skip", CLIP_SKIP)


def component_path(repository: Repository, base: str, component: str) -> Path | None:
    """Where a component of a base lies: an external VAE's by itself. None for what lorabuild makes. Raises as `base_path`."""
    return base_path(repository, base, key_of(repository, base, component))


def component_places(repository: Repository, base: str, component: str) -> list[Path]:
    """Where the file or folder of a component may lie, in the order in which it is looked for."""
    return base_places(repository, base, key_of(repository, base, component))


def key_of(repository: Repository, base: str, component: str) -> str:
    """The key of [bases.<name>] that says where a component lies; that of its digest is itself."""
    if component == "digest":
        return component
    return "vae" if component == "vae" and repository.bases[base].get("vae") else "file"


def base_places(repository: Repository, base: str, key: str = "file") -> list[Path]:
    """Where the file or folder of a base, or its VAE, may lie, in this order; nowhere for a generated one."""
    file = repository.bases[base].get(key)
    if file is None:
        return []
    given = Path(os.path.expanduser(file))
    dirs = [] if given.is_absolute() else model_folders(repository)
    return [folder / given for folder in (repository.root, *dirs)]


def model_folders(repository: Repository) -> list[Path]:
    """`[models] dirs`."""
    return [repository.root / os.path.expanduser(path) for path in repository.model_dirs]


def base_problem(repository: Repository, base: str, said: str, key: str = "file") -> Problem:
    """What is wrong with a base, at the line of its key."""
    reader = Reader(repository.root)
    layers = [layer for name in SHARED_FILES if (layer := reader.read(repository.root / name))]
    if not layers:  # gone since they were read
        return Problem(SHARED_FILES[0], 0, f"bases.{base}.{key}: {said}")
    place = merge(layers).place(("bases", base, key))
    return Problem(place.layer.file, place.line, f"bases.{base}.{key}: {said}")


def base_fault(repository: Repository, base: str, component: str, error: JobError) -> JobError:
    """What a look into a component found wrong, at the line that names its file."""
    key = key_of(repository, base, component)
    return JobError(*(base_problem(repository, base, one.message, key) for one in error.problems))


def _looked_in(repository: Repository) -> str:
    """Where a relative path was looked for, in the user's words."""
    dirs = repository.model_dirs
    if not dirs:
        return f"in the repository ([models] dirs in {SHARED_FILES[1]} names further places)"
    return f"in the repository and in {', '.join(map(quoted, dirs))}"


def _near_miss(file: str, folders: Iterable[Path]) -> str:
    """` (did you mean "x"?)`, of the bases in these folders. Without endings, which are alike whatever the name is."""
    names = {_stem(name): name for folder in folders for name in _bases_in(folder)}
    close = nearest(_stem(Path(file).name), names)
    return "" if close is None else f" (did you mean {quoted(str(Path(file).with_name(names[close])))}?)"


def _bases_in(folder: Path) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if is_single_file(name) or os.path.isdir(folder / name / "unet")]


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.casefold() in (SAFETENSORS, *PICKLES) else name
