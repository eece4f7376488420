"""Judge a base without reading its weights: is it there, has it all its parts, can its tokens be counted?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorabuild.components import PREFIXES, component_files
from lorabuild.data.tokenizers import find_vocabulary
from lorabuild.errors import JobError
from lorabuild.findings import Finding, found, of_problems
from lorabuild.header import read_header
from lorabuild.manifest import Repository
from lorabuild.manifest.bases import base_path, model_folders
from lorabuild.manifest.whence import Whence


@dataclass(frozen=True)
class CheckedBase:
    """A base: where it lies (None for a built-in one, or if it is not there), whether its parts are whole, findings."""

    path: Path | None = None
    usable: bool = True
    findings: list[Finding] = field(default_factory=list)


def check_base(repository: Repository, name: str, components: Collection[str], whence: Whence) -> CheckedBase:
    """`components` are those that jobs read."""
    try:
        path = base_path(repository, name)
    except JobError as error:
        return CheckedBase(None, False, of_problems("LB020", error.problems))
    if path is None:
        return CheckedBase()
    file, line = whence.base(name) or ("lorabuild.toml", 0)
    findings = [
        found("LB021", file, f"bases.{name}: {said}", line)
        for said in _faults(path, components, model_folders(repository))
    ]
    return CheckedBase(path, not findings, findings)


def _faults(path: Path, components: Collection[str], dirs: Sequence[Path]) -> Iterator[str]:
    if not path.is_dir():
        yield from _file_faults(path, components, dirs)
        return
    for name in sorted(components):
        try:
            for file in component_files(path, name):
                if file.suffix == ".safetensors":
                    read_header(file)  # also finds a file that is shorter than it says
        except (JobError, OSError) as error:
            yield f"{name}: {error}"


def _file_faults(path: Path, components: Collection[str], dirs: Sequence[Path]) -> Iterator[str]:
    try:
        tensors = read_header(path).tensors
    except (JobError, OSError) as error:
        yield str(error)
        return
    for name in sorted(components & PREFIXES.keys()):
        if not any(tensor.startswith(PREFIXES[name]) for tensor in tensors):
            yield f"{path}: not an SDXL checkpoint: no tensors {PREFIXES[name]}*"
    if any(name.startswith("tokenizer") for name in components):
        try:
            find_vocabulary(path, dirs)
        except JobError as error:
            yield str(error)
