"""Load every project of a repository; a file that has not changed is neither parsed nor checked again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild import __version__
from lorabuild.errors import ConfigError, Problem
from lorabuild.hashing import digest_bytes, digest_json
from lorabuild.manifest.continued import init_problems, init_project
from lorabuild.manifest.layers import Layer, Memo, Reader, shown
from lorabuild.names import RESERVED, name_problem, quoted
from lorabuild.scan import Scan

SHARED_FILES = ("lorabuild.toml", "lorabuild.local.toml")  # the second goes over the first
BUILTIN_BASES = {"tiny": {"builtin": "tiny-sdxl"}}  # there without a lorabuild.toml
HERE = Path(__file__).parent
# What decides how a file is read: if any of it changes, nothing remembered counts.
CODE = [
    *sorted(HERE.rglob("*.py")),
    *(
        HERE.parent / name
        for name in (
            "names.py",
            "bases/layout.py",
            "vectors.py",
            "data/buckets.py",
            "findings.py",
            "data/prompts.py",
            "lora/ranks.py",
            "lora/presets.py",
            "training/optimizers.py",
            "training/schedules.py",
        )
    ),
]


@dataclass(frozen=True)
class Project:
    """One lora.toml. `settings` holds project, dataset, recipe, resize and chop, every key with its value or default;
    `resize` and `chop` are None where the manifest has no such table. Plain JSON values: equal settings are equal."""

    name: str
    folder: Path
    manifest: Path
    settings: dict[str, Any]
    variants: Mapping[str, dict[str, Any]]  # name -> the complete settings of the variant
    swept: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # of variants by [matrix]: key -> value
    idle: Sequence[tuple[int, str]] = ()  # line of the manifest, what stands there to no effect
    files: Sequence[Path] = ()  # of its own that were read: recipes and the manifest


@dataclass(frozen=True)
class Repository:
    """All projects by name, and what they share. `files` were read, or looked for and not found."""

    root: Path
    projects: Mapping[str, Project]
    bases: Mapping[str, dict[str, Any]]  # name -> {"builtin": …} or {"file": …}
    model_dirs: Sequence[str]  # where a file is looked for, as it was written
    slots: Mapping[str, int]
    build_default: Sequence[str]
    store: Mapping[str, Any]
    files: Sequence[Path]
    executor: Mapping[str, Any] = field(default_factory=dict)  # [executor]
    export: Mapping[str, str] = field(default_factory=dict)  # program -> the folder for its LoRAs, as it was written

    @property
    def used_bases(self) -> list[str]:
        """The bases that projects train on; what is only listed costs nothing."""
        return sorted({project.settings["project"]["base"] for project in self.projects.values()})

    @property
    def warnings(self) -> list[Problem]:
        """What manifests say to no effect."""
        found = [
            (shown(project.manifest, self.root), *one) for project in self.projects.values() for one in project.idle
        ]
        return [Problem(*one) for one in found]


def load(
    root: Path,
    memo: Memo | None = None,
    scan: Scan | None = None,
    skip: Callable[[Path], bool] = lambda manifest: False,
) -> Repository:
    """Read the TOML files below `root`, but for manifests to `skip`. Raises ConfigError with every problem of every file.

    With a `memo`, what was found for equal bytes is not worked out again; then neither pydantic nor a TOML parser is
    imported. `scan` is the look at the folders that manifests are found by. What is to be skipped is read all the same
    where another project continues it.
    """
    repository, problems = survey(root, memo, scan, skip)
    if repository is None or problems:
        raise ConfigError(*problems)
    return repository


def survey(
    root: Path,
    memo: Memo | None = None,
    scan: Scan | None = None,
    skip: Callable[[Path], bool] = lambda manifest: False,
    instead: Mapping[Path, bytes] | None = None,
) -> tuple[Repository | None, list[Problem]]:
    """As `load`, but with all that can be read: the projects without a mistake, and every mistake of the others.

    There is no repository at all where lorabuild.toml is wrong. `instead` are files as they would be: an edit is judged
    before it is written.
    """
    root = Path(os.path.abspath(root))
    reader = Reader(root, memo, instead)
    remembered = _Remembered(memo)
    problems: list[Problem] = []

    shared_layers: list[Layer | None] = []
    shared = bases = None
    try:
        shared_layers += [reader.read(root / name) for name in SHARED_FILES]
        shared = remembered.of("shared", shared_layers, lambda: _checked_shared(shared_layers))
        bases = BUILTIN_BASES | shared["bases"]
    except ConfigError as error:
        problems += error.problems

    projects: dict[str, Project] = {}
    manifests, unreadable = (scan or Scan()).manifests(root / "projects")
    manifests = sorted({*manifests, *(path for path in instead or () if path.name == "lora.toml")})
    for error in unreadable:
        problems.append(Problem(shown(Path(error.filename), root), 1, f"cannot be read: {error.strerror}"))
    first: dict[str, Path] = {}  # the first manifest of each name
    for path in manifests:
        problems += _name_problems(path, root, first.setdefault(path.parent.name, path))
    ahead = [path for path in manifests if not skip(path)]
    for path in ahead:  # grows while it is walked
        name = path.parent.name
        try:
            found = _project(path, reader, remembered, bases, shared_layers)
        except ConfigError as error:
            problems += error.problems
            continue
        projects.setdefault(name, Project(name, path.parent, path, **found))
        if (other := first.get(init_project(found["settings"]) or "")) and other not in ahead:
            ahead.append(other)  # nothing of it has changed, but it is continued
    problems += init_problems(projects, first, reader)
    problems = sorted(set(problems))
    if shared is None or bases is None:
        return None, problems
    repository = Repository(
        root=root,
        projects=dict(sorted(projects.items())),
        bases=bases,
        model_dirs=shared["models"]["dirs"],
        slots=shared["slots"],
        build_default=shared["build"]["default"],
        store=shared["store"],
        files=sorted(reader.looked_for),
        executor=shared["executor"],
        export=shared["export"],
    )
    return repository, problems


class _Remembered:
    """Results by the bytes of the files that they were made from."""

    def __init__(self, memo: Memo | None):
        self._memo = memo
        self._code = digest_json([__version__, *(digest_bytes(path.read_bytes()) for path in CODE)])

    def of(self, kind: str, layers: Sequence[Layer | None], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gives, from memory if these files had the same bytes before. A mistake is not remembered."""
        if self._memo is None:
            return make()
        digests = (layer.digest if layer else "none" for layer in layers)
        key = f"{kind}:{digest_bytes(' '.join([self._code, *digests]).encode())}"
        if (known := self._memo.get(key)) is not None:
            return json.loads(known)
        value = make()
        self._memo.put(key, json.dumps(value, ensure_ascii=False))
        return value


def _checked_shared(layers: Sequence[Layer | None]) -> dict[str, Any]:
    from lorabuild.manifest.check import check_shared

    return check_shared([layer for layer in layers if layer])


def _name_problems(path: Path, root: Path, first: Path) -> list[Problem]:
    """What is wrong with the name of the project of the manifest `path`; `first` is the first one of this name."""
    name = path.parent.name
    if problem := name_problem(name):
        said = f"a project has the name of its folder: {problem}"
    elif name in RESERVED:
        said = f"{quoted(name)} is the name of a stage or command: give the project's folder another"
    elif path != first:
        said = f"{quoted(name)} is the name of two projects, here and in {shown(first, root)}: rename one"
    else:
        return []
    return [Problem(shown(path, root), 1, said)]


def _project(
    path: Path,
    reader: Reader,
    remembered: _Remembered,
    bases: Mapping[str, Any] | None,
    shared_layers: Sequence[Layer | None],
) -> dict[str, Any]:
    """{"settings": …, "variants": …, "swept": …, "idle": …, "files": …} of a manifest. Raises ConfigError."""
    manifest = reader.read(path)
    if manifest is None:
        raise ConfigError(Problem(shown(path, reader.root), 1, "cannot be read: no such file"))
    layers, problems = reader.stack(manifest)

    def make() -> dict[str, Any]:
        from lorabuild.manifest.check import check_project

        return check_project(layers, bases, partial=bool(problems))

    if not problems and bases is not None:
        return remembered.of("project", [*shared_layers, *layers], make) | {"files": [layer.path for layer in layers]}
    try:
        if layers:  # tell also what is wrong with those that can be read
            make()
    except ConfigError as error:
        problems += error.problems
    raise ConfigError(*problems)
