"""Load every project of a repository; a file that has not changed is neither parsed nor checked again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabuild import __version__
from lorabuild.errors import ConfigError, Problem
from lorabuild.hashing import digest_bytes, digest_json
from lorabuild.manifest.layers import Layer, Memo, Reader
from lorabuild.names import RESERVED, name_problem, quoted

BUILTIN_BASES = {"tiny": {"builtin": "tiny-sdxl"}}  # there without a lorabuild.toml
HERE = Path(__file__).parent
# What decides how a file is read: if any of it changes, nothing remembered counts.
CODE = [*sorted(HERE.glob("*.py")), HERE.parent / "names.py", HERE.parent / "buckets.py"]


@dataclass(frozen=True)
class Project:
    """One lora.toml. `settings` holds project, dataset, recipe, resize and chop, every key with its value or default;
    `resize` and `chop` are None where the manifest has no such table. Plain JSON values: equal settings are equal."""

    name: str
    folder: Path
    manifest: Path
    settings: dict[str, Any]
    variants: Mapping[str, dict[str, Any]]  # name -> the complete settings of the variant


@dataclass(frozen=True)
class Repository:
    """All projects by name, and what they share. `files` were read, or looked for and not found."""

    root: Path
    projects: Mapping[str, Project]
    bases: Mapping[str, dict[str, Any]]
    slots: Mapping[str, int]
    build_default: Sequence[str]
    files: Sequence[Path]


def load(root: Path, memo: Memo | None = None) -> Repository:
    """Read all TOML files below `root`. Raises ConfigError with every problem of every file.

    With a `memo`, what was found for equal bytes is not worked out again; then neither pydantic nor a TOML parser is
    imported.
    """
    root = Path(os.path.abspath(root))
    reader = Reader(root, memo)
    remembered = _Remembered(memo)
    problems: list[Problem] = []

    shared = _shared(reader, remembered, problems)
    bases = None if shared is None else BUILTIN_BASES | shared["bases"]
    projects: dict[str, Project] = {}
    for path in _manifests(root, reader, problems):
        problems += _name_problems(path, reader, projects)
        try:
            found = _project(path, reader, remembered, bases)
        except ConfigError as error:
            found = {"settings": {}, "variants": {}}
            problems += error.problems
        projects.setdefault(path.parent.name, Project(path.parent.name, path.parent, path, **found))
    if problems or shared is None or bases is None:
        raise ConfigError(*sorted(set(problems)))
    return Repository(
        root=root,
        projects=dict(sorted(projects.items())),
        bases=bases,
        slots=shared["slots"],
        build_default=shared["build"]["default"],
        files=sorted(reader.looked_for),
    )


class _Remembered:
    """Results by the bytes of the files that they were made from."""

    def __init__(self, memo: Memo | None):
        self._memo = memo
        self._code = [__version__, *(digest_bytes(path.read_bytes()) for path in CODE)] if memo else []

    def of(self, kind: str, layers: Sequence[Layer | None], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gives, from memory if these files had the same bytes before. A mistake is not remembered."""
        if self._memo is None:
            return make()
        key = f"{kind}:{digest_json([self._code, [layer and layer.digest for layer in layers]])}"
        if (known := self._memo.get(key)) is not None:
            return json.loads(known)
        value = make()
        self._memo.put(key, json.dumps(value, ensure_ascii=False))
        return value


def _shared(reader: Reader, remembered: _Remembered, problems: list[Problem]) -> dict[str, Any] | None:
    """What lorabuild.toml says, and over it lorabuild.local.toml. None if that is wrong."""
    try:
        layers = _shared_layers(reader)

        def make() -> dict[str, Any]:
            from lorabuild.manifest.check import check_shared

            return check_shared([layer for layer in layers if layer])

        return remembered.of("shared", layers, make)
    except ConfigError as error:
        problems += error.problems
        return None


def _shared_layers(reader: Reader) -> list[Layer | None]:
    return [reader.read(reader.root / name) for name in ("lorabuild.toml", "lorabuild.local.toml")]


def _manifests(root: Path, reader: Reader, problems: list[Problem]) -> Iterator[Path]:
    """projects/**/lora.toml, in the order of their paths."""

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # no projects/ at all: nothing to load
            problems.append(Problem(reader.shown(Path(error.filename)), 1, f"cannot be read: {error.strerror}"))

    for folder, folders, files in os.walk(root / "projects", onerror=unreadable):
        folders.sort()
        if "lora.toml" in files:
            yield Path(folder) / "lora.toml"


def _name_problems(path: Path, reader: Reader, others: Mapping[str, Project]) -> list[Problem]:
    name, file = path.parent.name, reader.shown(path)
    if problem := name_problem(name):
        return [Problem(file, 1, f"a project has the name of its folder: {problem}")]
    if name in RESERVED:
        return [
            Problem(file, 1, f"{quoted(name)} is the name of a stage or command: give the project's folder another")
        ]
    if name in others:
        other = reader.shown(others[name].manifest)
        return [Problem(file, 1, f"{quoted(name)} is the name of two projects, here and in {other}: rename a folder")]
    return []


def _project(path: Path, reader: Reader, remembered: _Remembered, bases: Mapping | None) -> dict[str, Any]:
    """{"settings": …, "variants": …} of a manifest. Raises ConfigError."""
    manifest = reader.read(path)
    if manifest is None:
        raise ConfigError(Problem(reader.shown(path), 1, "cannot be read: it vanished just now"))
    layers, problems = reader.stack(manifest)

    def make() -> dict[str, Any]:
        from lorabuild.manifest.check import check_project

        return check_project(layers, bases, partial=bool(problems))

    if not problems and bases is not None:
        return remembered.of("project", [*layers, *_shared_layers(reader)], make)
    try:
        make()
    except ConfigError as error:
        problems += error.problems
    raise ConfigError(*problems)
