"""Read `KEY=VALUE` and make an edit of it: what the schema takes is chosen, what it does not take changes nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabuild.errors import ConfigError, Problem, UsageError, near_miss
from lorabuild.manifest.layers import KeyPath, Reader, shown
from lorabuild.manifest.merge import EXCLUSIVE, merge
from lorabuild.manifest.repository import survey
from lorabuild.scaffold.edit import with_value, without
from lorabuild.scaffold.keys import dotted, key_path
from lorabuild.tomltext import text_written

ALONE = {"vector": ("vector_style",)}  # what means nothing without a key that another takes the place of


@dataclass(frozen=True)
class Assignment:
    """One `KEY=VALUE`: a path and the text of its value; an empty one removes the key."""

    path: KeyPath
    value: str

    @property
    def key(self) -> str:
        return dotted(self.path)


@dataclass(frozen=True)
class Edited:
    """A manifest as it would be, what of it went to make room, and what was wrong before and still is."""

    data: bytes
    notes: tuple[str, ...]
    left: tuple[Problem, ...]


def assignment(word: str) -> Assignment:
    """`resize.thr=-3.2`. Raises UsageError."""
    key, sign, value = word.partition("=")
    if not sign:
        raise UsageError(f"{word}: expected KEY=VALUE, as in resize.thr=-3.2 (KEY= removes a key)")
    return Assignment(key_path(key.strip()), value.strip())


def spellings(value: str) -> list[str]:
    """What a value may mean, as TOML: itself, text, a list with commas; in the order in which they are tried."""
    found = [value] if _is_toml(value) else []
    if not value.startswith(("[", "{", '"', "'")):
        parts = [part.strip() for part in value.split(",")]
        listed = ", ".join(part if _is_toml(part) else text_written(part) for part in parts if part)
        found += [text_written(value), f"[{listed}]"]
    return found or [text_written(value)]


def edited(root: Path, manifest: Path, assignments: Sequence[Assignment]) -> Edited:
    """The manifest with all assignments made, checked as a build checks it. Nothing is written.

    Raises ConfigError with what would be wrong that was not before, and UsageError for a key that cannot be edited.
    """
    for one in assignments:
        if sum(one.path == other.path for other in assignments) > 1:
            raise UsageError(f"{one.key}: stands twice: once is enough")
    judge = _Judge(root, manifest)
    data, notes = _read(manifest, root), []
    together = {one.path for one in assignments if one.value}
    for one in assignments:
        if not one.value:
            data = _removed(data, one, root, manifest)
            continue
        rivals = [path for path in _rivals(one.path) if path not in together and _has(data, path)]
        options = []
        for raw in spellings(one.value):
            option = with_value(data, one.path, raw, rivals[0] if rivals and not _has(data, one.path) else None)
            for path in rivals:
                option = without(option, path) if _has(option, path) else option
            options.append((option, judge.about(one, option)))
        data = next((option for option, wrong in options if not wrong), None) or _best(options)
        notes += [f"{dotted(path)} removed: {one.key} takes its place" for path in rivals]
    wrong = judge.problems(data)
    if new := judge.new(wrong, assignments):
        raise ConfigError(*new)
    return Edited(data, tuple(notes), tuple(wrong))


class _Judge:
    """Tells what a build would say of a manifest, beside what it says already."""

    def __init__(self, root: Path, manifest: Path):
        self.root, self.manifest = root, manifest
        self._known = {(one.file, one.message) for one in self.problems(None)}

    def about(self, one: Assignment, data: bytes) -> list[Problem]:
        """What is wrong with the value of one key."""
        return [problem for problem in self.problems(data) if _is_about(problem, one)]

    def new(self, problems: Sequence[Problem], assignments: Sequence[Assignment]) -> list[Problem]:
        """Those that were not there before, or are so with a key that is being set."""
        given = [one for one in assignments if one.value]
        return [
            one
            for one in problems
            if (one.file, one.message) not in self._known or any(_is_about(one, each) for each in given)
        ]

    def problems(self, data: bytes | None) -> list[Problem]:
        """All that is wrong with the manifest, or with these bytes in its place."""
        instead = None if data is None else {self.manifest: data}
        return survey(self.root, skip=lambda path: path != self.manifest, instead=instead)[1]


def _is_about(problem: Problem, one: Assignment) -> bool:
    said = ".".join(str(part) for part in one.path if isinstance(part, str))
    return problem.message.partition(": ")[0] == said


def _best(options: Sequence[tuple[bytes, list[Problem]]]) -> bytes:
    """Of spellings that are all wrong the one whose fault is not its mere type: "OUT1" is no block, not "no list"."""
    near = (data for data, wrong in options if not any(": expected " in one.message for one in wrong))
    return next(near, options[0][0])


def _removed(data: bytes, one: Assignment, root: Path, manifest: Path) -> bytes:
    try:
        return without(data, one.path)
    except KeyError:
        file = shown(manifest, root)
        layer = Reader(root, instead={manifest: data}).read(manifest)
        below = merge(Reader(root, instead={manifest: data}).stack(layer)[0])
        if one.path in below.origin:
            place = below.origin[one.path]
            said = f"stands in {place.layer.file}:{place.line}, not here: set another value, or change it there"
        else:
            said = f"not in this file{near_miss(one.key, sorted(_keys(tomllib.loads(data.decode('utf-8-sig')))))}"
        raise UsageError(f"{file}: {one.key}: {said}") from None


def _rivals(path: KeyPath) -> Iterator[KeyPath]:
    """The other ways to say what `path` says, of which a table has one; in a variant's table likewise."""
    *above, key = path
    table = ".".join(map(str, above[2:] if above[:1] == ["variants"] else above))
    for group in EXCLUSIVE.get(table, ()):
        for other in group if key in group else ():
            if other != key:
                yield (*above, other)
                yield from ((*above, one) for one in ALONE.get(other, ()))


def _has(data: bytes, path: KeyPath) -> bool:
    table = tomllib.loads(data.decode("utf-8-sig"))
    for part in path:
        if not (isinstance(table, Mapping) and part in table) and not (
            isinstance(table, list) and isinstance(part, int) and part < len(table)
        ):
            return False
        table = table[part]
    return True


def _keys(table: Mapping, above: KeyPath = ()) -> Iterator[str]:
    for key, value in table.items():
        yield dotted((*above, key))
        if isinstance(value, Mapping):
            yield from _keys(value, (*above, key))


def _is_toml(text: str) -> bool:
    """One value, on one line, and no comment behind it."""
    if not text or "\n" in text or "\r" in text:
        return False
    try:
        return len(tomllib.loads(f"v = [{text}]")["v"]) == 1 and list(tomllib.loads(f"v = {text}")) == ["v"]
    except (ValueError, RecursionError):
        return False


def _read(manifest: Path, root: Path) -> bytes:
    """The file's bytes, if they are TOML. Raises ConfigError with the line of the fault, as a build does."""
    layer = Reader(root).read(manifest)
    if layer is None:
        raise ConfigError(Problem(shown(manifest, root), 1, "cannot be read: no such file"))
    _ = layer.table
    return layer.data
