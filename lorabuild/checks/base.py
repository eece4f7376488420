"""Judge a base without reading its weights: is it there, has it all its parts, can its tokens be counted?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.bases.configs import network_config
from lorabuild.bases.family import folder_stranger, prediction_warning
from lorabuild.components import PREFIXES, component_files, parts_of, pinned_file
from lorabuild.data.tokenizers import find_vocabulary
from lorabuild.errors import JobError
from lorabuild.findings import Finding, found, of_problems
from lorabuild.hashing import sha256_from
from lorabuild.header import read_header
from lorabuild.manifest import Repository
from lorabuild.manifest.bases import base_path, model_folders
from lorabuild.manifest.whence import Whence
from lorabuild.state import State


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
        vae = base_path(repository, name, "vae")
    except JobError as error:
        return CheckedBase(None, False, of_problems("LB020", error.problems))

    def at(key: str) -> tuple[str, int]:
        return whence.base(name, key) or ("lorabuild.toml", 0)

    inside = {one for one in components if vae is None or one != "vae"} if path else set()
    faults = [("file", said) for said in _faults(path, inside, model_folders(repository))] if path else []
    faults += [("vae", said) for said in _faults(vae, {"vae"}, ())] if vae and "vae" in components else []
    findings = [found("LB021", at(key)[0], f"bases.{name}: {said}", at(key)[1]) for key, said in faults]
    if path and not findings and (said := _prediction(path, repository.bases[name])):
        file, line = at("prediction_type")
        findings.append(found("LB024", file, f"bases.{name}: {said}", line))
    return CheckedBase(path, not faults, findings)


def pin_findings(repository: Repository, name: str, path: Path, state: State, whence: Whence) -> Iterator[Finding]:
    """Is the file at `path` the one that `digest` pins? Its sha256 is remembered, so that it is read once, here or by a build."""
    if not (pin := repository.bases[name].get("digest")):
        return
    file, line = whence.base(name, "digest") or ("lorabuild.toml", 0)
    try:
        pinned = pinned_file(path)
        sha256 = state.digest_of([pinned], "sha256", lambda: sha256_from(pinned))
    except JobError as error:
        yield found("LB025", file, f"bases.{name}.digest: {error}", line)
    except OSError as error:
        yield found("LB025", file, f"bases.{name}.digest: {path}: {error.strerror}", line)
    else:
        if not sha256.startswith(pin):
            said = f"{pinned}: its sha256 is {sha256}, not {pin}: another file, or another version of it"
            yield found("LB025", file, f"bases.{name}.digest: {said}", line)


def _faults(path: Path, components: Collection[str], dirs: Sequence[Path]) -> Iterator[str]:
    """What is missing, truncated or of another kind; of what is no base at all that alone. `dirs`: of models."""
    networks = [name for name in sorted(components) if name in PREFIXES]
    try:
        if path.is_file():
            parts_of(path, networks)
            if networks == ["vae"]:
                network_config(path, "vae")
            if len(networks) < len(components):
                find_vocabulary(path, dirs)
            return
        if what := folder_stranger(path, networks):
            yield f"{path}: {what}"
            return
    except (JobError, OSError) as error:
        yield str(error)
        return
    for name in sorted(components):
        try:
            for file in component_files(path, name):
                if file.suffix == ".safetensors":
                    read_header(file)  # also finds a file that is shorter than it says
        except (JobError, OSError) as error:
            yield f"{name}: {error}"


def _prediction(path: Path, settings: Mapping[str, Any]) -> str | None:
    return prediction_warning(path, settings.get("prediction_type", "epsilon"))
