"""Read the TOML files that a manifest is made of: each once, in the order in which they are merged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lorabuild.errors import ConfigError, Problem, near_miss
from lorabuild.hashing import digest_bytes
from lorabuild.names import quoted

KeyPath = tuple[str | int, ...]  # the way to a value: keys of tables, numbers of elements
DEEPEST = 50  # levels of tables and lists: the schema has 4, and Python's own limit is met only with a traceback


class Memo(Protocol):
    """Remembers text between runs. Losing it costs time only."""

    def get(self, key: str) -> str | None: ...
    def put(self, key: str, value: str) -> None: ...


@dataclass(frozen=True, eq=False)
class Layer:
    """One TOML file of the repository at `root`, as it was read. Parsed when first asked for."""

    root: Path
    path: Path
    data: bytes

    @property
    def file(self) -> str:
        """What messages call it."""
        return shown(self.path, self.root)

    @cached_property
    def digest(self) -> str:
        return digest_bytes(self.data)

    @cached_property
    def table(self) -> Mapping[str, Any]:
        """The file's content. Raises ConfigError with the line of the fault."""
        return _parsed(self)

    def line(self, *path: str | int) -> int:
        """The line, from 1, of a key or of an element of an array; of the table around it if the file has no such key."""
        return self._lines.of(path)

    @cached_property
    def _lines(self) -> Any:
        from lorabuild.manifest.places import Lines

        return Lines(self.data)


class Reader:
    """The TOML files of a repository, each read once. `instead` has some as they would be, which are not read."""

    def __init__(self, root: Path, memo: Memo | None = None, instead: Mapping[Path, bytes] | None = None):
        self.root = root
        self.looked_for: set[Path] = set()
        self._memo = memo
        self._layers: dict[Path, Layer | None] = {
            path: Layer(root, path, data) for path, data in (instead or {}).items()
        }

    def read(self, path: Path) -> Layer | None:
        """The file, or None if there is none. Raises ConfigError if it cannot be read."""
        if path not in self._layers:
            self.looked_for.add(path)
            try:
                self._layers[path] = Layer(self.root, path, path.read_bytes())
            except FileNotFoundError:
                self._layers[path] = None
            except OSError as error:
                raise ConfigError(Problem(shown(path, self.root), 1, f"cannot be read: {error.strerror}")) from None
        return self._layers[path]

    def stack(self, manifest: Layer) -> tuple[list[Layer], list[Problem]]:
        """The layers of a manifest, in the order of merging: what it extends, depth first and each file once, then itself.

        With problems (an unknown recipe, a cycle, broken TOML) the layers are those that can be read.
        """
        layers: list[Layer] = []
        problems: list[Problem] = []
        self._visit(manifest, [manifest], layers, problems)
        return layers, problems

    def _visit(self, layer: Layer, chain: list[Layer], layers: list[Layer], problems: list[Problem]) -> None:
        try:
            names = self._extends(layer, problems)
        except ConfigError as error:
            problems += error.problems
            return
        for place, name in names:
            try:
                recipe = self._recipe(layer, place, name)
            except ConfigError as error:
                problems += error.problems
                continue
            if recipe in chain:
                circle = " -> ".join(one.file for one in [*chain[chain.index(recipe) :], recipe])
                problems.append(Problem(layer.file, layer.line(*place), f"extends: a circle: {circle}"))
            elif recipe not in layers:
                self._visit(recipe, [*chain, recipe], layers, problems)
        layers.append(layer)

    def _recipe(self, layer: Layer, place: KeyPath, name: str) -> Layer:
        recipe = self.read(self.root / "recipes" / f"{name}.toml") if _plain(name) else None
        if recipe is None:
            known = sorted(path.stem for path in (self.root / "recipes").glob("*.toml"))
            near = near_miss(name, known) or near_miss(Path(name).stem, known)
            raise ConfigError(
                Problem(layer.file, layer.line(*place), f"extends: {quoted(name)} is not in recipes/{near}")
            )
        return recipe

    def _extends(self, layer: Layer, problems: list[Problem]) -> list[tuple[KeyPath, str]]:
        """(place, name) of each recipe that a layer extends. Remembered: an unchanged file is not parsed again."""
        key = f"extends:{layer.digest}"
        known = None if self._memo is None else self._memo.get(key)
        value = layer.table.get("extends", []) if known is None else json.loads(known)
        if isinstance(value, str):
            names: list[tuple[KeyPath, str]] = [(("extends",), value)]
        elif isinstance(value, list) and all(isinstance(name, str) for name in value):
            names = [(("extends", number), name) for number, name in enumerate(value)]
        else:
            said = 'extends: expected the name of a recipe, or a list of names: extends = ["one", "two"]'
            problems.append(Problem(layer.file, layer.line("extends"), said))
            return []
        if self._memo is not None and known is None:
            self._memo.put(key, json.dumps(value))
        return names


def shown(path: Path, root: Path) -> str:
    """What messages call a file: its path in the repository, on one line."""
    return quoted(path.relative_to(root).as_posix())[1:-1]


def _parsed(layer: Layer) -> dict[str, Any]:
    """TOML as plain values. Raises ConfigError with one problem, at the line of the fault."""
    import tomllib

    data = layer.data
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
        for path in _beyond_64_bits(table):
            raise ConfigError(Problem(layer.file, layer.line(*path), "wrong TOML: whole numbers have at most 64 bits"))
        return table
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        said = f"not UTF-8 (byte 0x{data[error.start]:02x}): save the file as UTF-8"
    except RecursionError:
        line, said = 1, "wrong TOML: tables or lists are nested too deeply"
    except ValueError as error:  # TOMLDecodeError, and what int() says to a number of thousands of digits
        fault, _, place = str(error).removesuffix(")").partition(" (at ")
        line = int(place.split()[1].rstrip(",")) if place.startswith("line") else max(1, len(data.splitlines()))
        said = f"wrong TOML: {fault}"
    raise ConfigError(Problem(layer.file, line, said))


def _beyond_64_bits(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The places of integers that TOML does not allow, though Python reads them. Raises RecursionError below DEEPEST."""
    if len(path) > DEEPEST:
        raise RecursionError
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _beyond_64_bits(inner, (*path, key))
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield path


def _plain(name: str) -> bool:
    """A file's name, not a path that leads out of recipes/."""
    return re.fullmatch(r"\w[\w.-]*", name) is not None
