"""Put a manifest together: keys with comments, and a line for all that became none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lorabuild.importing.arguments import ORDER
from lorabuild.tomltext import comment, key_written, written

TABLES = ("project", "dataset", "recipe", "recipe.network_args", "resize", "chop", "samples")
LISTS = {"dataset": "dataset.subset", "recipe.network_args": "recipe.phases"}  # arrays of tables, after which table
MISSING = "TO BE SET"  # how a line begins its comment that nobody told


@dataclass(frozen=True)
class Entry:
    value: Any
    comment: str = ""


@dataclass(frozen=True)
class Place:
    """Where a key of a draft is: its table, or one of a list of tables."""

    table: str
    key: str
    number: int | None = None

    @property
    def shown(self) -> str:
        return f"{self.table}.{self.key}"


@dataclass
class Draft:
    """A manifest in the making. `extends` names recipes; `notes` tell what is no key, `head` stands on top."""

    tables: dict[str, dict[str, Entry]] = field(default_factory=lambda: {table: {} for table in TABLES})
    lists: dict[str, list[dict[str, Entry]]] = field(default_factory=lambda: {name: [] for name in LISTS.values()})
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    base_lines: list[str] = field(default_factory=list)  # what lorabuild.toml needs

    def set(self, table: str, key: str, value: Any, said: str = "") -> None:
        self.tables[table][key] = Entry(value, said)

    def value(self, table: str, key: str, default: Any = None) -> Any:
        entry = self.tables[table].get(key)
        return default if entry is None else entry.value

    def refuse(self, place: Place, why: str) -> None:
        """Make a key a note."""
        table = self.tables[place.table] if place.number is None else self.lists[place.table][place.number]
        entry = table.pop(place.key)
        self.notes.append(f"{place.key} = {written(entry.value)}: {why}")
        self.warnings.append(f"{place.shown}: {why}: not taken over")

    def text(self) -> str:
        return "\n".join(line for line, _ in self.lines()) + "\n"

    def places(self) -> dict[int, Place]:
        """Line, from 1 -> what stands there."""
        return {number: place for number, (_, place) in enumerate(self.lines(), 1) if place}

    def lines(self) -> Iterator[tuple[str, Place | None]]:
        needed = ["lorabuild.toml needs this base:", *self.base_lines] if self.base_lines else []
        yield from ((f"# {comment(line)}".rstrip(), None) for line in [*self.head, *needed])
        for name in TABLES:
            if entries := self.tables[name]:
                yield "", None
                yield f"[{name}]", None
                for key in sorted(entries, key=_order):
                    yield _line(key, entries[key]), Place(name, key)
            listed = LISTS.get(name, "")
            for number, one in enumerate(self.lists.get(listed, ())):
                yield "", None
                yield f"[[{listed}]]", None
                for key, entry in one.items():
                    yield _line(key, entry), Place(listed, key, number)
        if self.notes:
            yield "", None
            yield "# What was told and is no key here, and why:", None
            yield from ((f"# {comment(note)}", None) for note in self.notes)


def _order(key: str) -> int:
    return ORDER.index(key) if key in ORDER else len(ORDER)


def _line(key: str, entry: Entry) -> str:
    said = f"  # {comment(entry.comment)}" if entry.comment else ""
    return f"{key_written(key)} = {written(entry.value)}{said}"
