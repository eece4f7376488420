"""Expand [matrix] into variants: every combination of the values of its keys, each with a name that says them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from lorabuild.errors import Problem, near_miss
from lorabuild.hashing import digest_json
from lorabuild.manifest.keys import CLASS_OF, IN_ORDER
from lorabuild.manifest.layers import KeyPath
from lorabuild.manifest.merge import EXCLUSIVE, VARYING, Merged, Place, overlay
from lorabuild.names import quoted

MATRIX = "matrix"
MOST = 256  # combinations: a slip of two long lists is told before it trains for a month
TABLES = ("recipe", "recipe.network_args", "resize", "chop")  # where a short name is looked for
ARGUMENTS = ("recipe.optimizer_args", "recipe.lr_scheduler_args")  # tables of any keys, which are swept, too
LONGEST_VALUE, LONGEST_NAME = 24, 80  # characters in a file's name

# Tables whose keys are not swept, and why
ELSEWHERE = {
    "project": "[project] is one for all variants: make a project of its own that extends the same recipe",
    "dataset": "all variants are trained on the same images: make a project of its own that extends the same recipe",
    "samples": "all variants are drawn with the same prompts, to be compared: set it in [samples]",
    "check": "it changes nothing that is built",
}
# Classes of keys that would give the same files again, and why
IDLE = {
    "saved": "it says which snapshots are kept, and changes no file: set it in [recipe]",
    "execution": "it says how a training runs, and changes no file: set it in [recipe]",
    "presentation": "it changes what is shown, and no file: set it in [recipe]",
}
CONTINUED = "what a training continues is one for all variants: make a project of its own that extends the same recipe"
NOT_SWEPT = {f"recipe.{key}": CONTINUED for key in ("init", "network_weights", "dim_from_weights")}
RESULTS = ("recipe.learning_rate",)  # no result by itself, but the default of the two rates that are


@dataclass(frozen=True)
class Axis:
    """A swept key, `recipe.unet_lr`, with its values, and where it stands in [matrix]."""

    key: str
    path: KeyPath
    values: Sequence[Any]

    @property
    def short(self) -> str:
        """The key without its table."""
        return self.key.rpartition(".")[2]


def axes(merged: Merged) -> tuple[list[Axis], list[Problem]]:
    """The keys of [matrix], those of [recipe] first, and what is wrong with it. No key that is wrong is among them."""
    table = merged.values.get(MATRIX)
    if not isinstance(table, dict):
        return [], []  # the schema says what was expected
    found: dict[str, Axis] = {}
    problems: list[Problem] = []
    for path, value in _leaves(table, (MATRIX,)):
        written = ".".join(str(part) for part in path[1:])
        key, said = _meant(written)
        said = said or _values_fault(key, value)
        other = found.get(key) or _rival(key, found)
        if not said and other:
            said = _clash(key, path, other, merged)
        if said:
            problems.append(_problem(merged, path, said))
        else:
            found[key] = Axis(key, path, value)
    for axis in found.values():
        problems += list(_twice(axis, merged))
    ordered = sorted(found.values(), key=lambda axis: (VARYING.index(axis.key.partition(".")[0]), axis.key))
    if not problems and combinations(ordered) > MOST:
        said = f"{arithmetic(ordered)} combinations: {MOST} are the most"
        problems.append(_problem(merged, (MATRIX,), said))
    return ordered, problems


def combinations(found: Sequence[Axis]) -> int:
    """How many variants they are; 0 of none."""
    return prod(len(axis.values) for axis in found) if found else 0


def arithmetic(found: Sequence[Axis]) -> str:
    """`thr 4 × unet_lr 2 = 8`."""
    return f"{' × '.join(f'{axis.short} {len(axis.values)}' for axis in found)} = {combinations(found)}"


def points(found: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Each combination: key -> value. In the order of the values, the last key changing first."""
    for values in product(*(axis.values for axis in found)) if found else ():
        yield dict(zip((axis.key for axis in found), values, strict=True))


def point_name(point: Mapping[str, Any], short: Mapping[str, str] | None = None) -> str:
    """The name of a variant: `unet_lr3e-4_thr-3.2`, of its values alone, so that others may come and go.

    Small letters, digits, `.`, `_` and `-`: a legal name of a file and of a task wherever it is built.
    """
    names = [f"{(short or _short(point))[key]}{_value_name(value)}" for key, value in point.items()]
    name = "_".join(names)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 8].rstrip('._-')}-{digest_json(point)[:6]}"


def part(point: Mapping[str, Any], tables: Sequence[str]) -> dict[str, Any]:
    """Those values of a combination that stand in one of these tables, or are one of these keys."""
    return {key: value for key, value in point.items() if key in tables or key.partition(".")[0] in tables}


def part_name(point: Mapping[str, Any], tables: Sequence[str]) -> str:
    """The name of the part of a combination that `tables` see; empty if they see none of it."""
    seen = part(point, tables)
    return point_name(seen, _short(point)) if seen else ""


def swept(merged: Merged, point: Mapping[str, Any], found: Sequence[Axis]) -> Merged:
    """The project with the values of a combination laid over its own, as a later layer would.

    Raises ValueError if one of them is not among the values of its key.
    """
    values = {key: value for key, value in merged.values.items() if key not in (MATRIX, "variants")}
    result = Merged(deepcopy(values), dict(merged.origin))
    tables: dict[str, Any] = {}
    for key, value in point.items():
        _put(tables, key.split("."), deepcopy(value))
    for table, above in tables.items():
        where = merged.origin.get((table,)) or merged.place((MATRIX,))
        if not isinstance(result.values.get(table), dict):
            result.values[table] = {}
        overlay(result.values[table], result.origin, above, (table,), where)
    for axis in found:
        if axis.key in point:
            at = axis.values.index(point[axis.key])
            _point_to(result.origin, tuple(axis.key.split(".")), merged.place((*axis.path, at)))
    return result


def text(value: Any) -> str:
    """A value as a name and a table say it: the shortest of the usual spellings of a number."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        return ", ".join(map(text, value))
    return json.dumps(value, ensure_ascii=False, default=str)


def shown(value: Any) -> str:
    """A value as messages show it."""
    return text(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False, default=str)


def is_swept(key: str) -> str:
    """Why a variant cannot have a key of its own; empty if it can."""
    if key in NOT_SWEPT:
        return NOT_SWEPT[key]
    return "" if key in RESULTS else IDLE.get(CLASS_OF.get(key, "result"), "")


def sweepable() -> list[str]:
    """All keys that [matrix] takes, with their tables."""
    return [*(key for key in CLASS_OF if _table(key) in TABLES and not is_swept(key)), *IN_ORDER]


# what a key means


def _leaves(table: Mapping[str, Any], above: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of all that is no table."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _meant(written: str) -> tuple[str, str]:
    """The key that a name in [matrix] means, and what is wrong with it."""
    first = written.partition(".")[0]
    if first in ELSEWHERE and "." in written:
        return "", ELSEWHERE[first]
    ways = [written, *(f"{table}.{written}" for table in TABLES)]
    known = [key for key in ways if _is_key(key)]
    fit = [key for key in known if not is_swept(key)]
    if len(fit) > 1:
        return "", f"{' or '.join(fit)}? Write one of them"
    if fit:
        return fit[0], ""
    if known:
        return "", is_swept(known[0])
    if owner := next((table for table in ELSEWHERE if f"{table}.{written}" in CLASS_OF), ""):
        return "", ELSEWHERE[owner]
    if first == "variants":
        return "", "a sweep has no hand-named variants: [variants.<name>] stands beside [matrix]"
    keys = sweepable()
    names = [*keys, *(key.rpartition(".")[2] for key in keys)]
    return "", f"unknown key{near_miss(written, names)}"


def _is_key(key: str) -> bool:
    """Is it a key of a table that is swept, or an argument of one that takes any?"""
    if key in CLASS_OF or key in IN_ORDER:
        return _table(key) in TABLES
    return key.startswith(tuple(f"{table}." for table in ARGUMENTS))


def _table(key: str) -> str:
    return key.rpartition(".")[0]


def _values_fault(key: str, value: Any) -> str:
    """What is wrong with the values of a key, whatever it is."""
    short = key.rpartition(".")[2]
    if not isinstance(value, list):
        shown = json.dumps(value, ensure_ascii=False, default=str)
        return f"expected a list of values, as in {short} = [{shown if value != {} else '…'}], got {shown}"
    return "" if value else f"an empty list: it has to have a value, as in {short} = [1]; or leave the key out"


def _rival(key: str, found: Mapping[str, Axis]) -> Axis | None:
    """A swept key that says the same in other words, or a part of it; then each would take the place of the other."""
    table, _, name = key.rpartition(".")
    rivals = {f"{table}.{other}" for group in EXCLUSIVE.get(table, ()) if name in group for other in group} | {table}
    return next((axis for other, axis in found.items() if other in rivals or _table(other) == key), None)


def _clash(key: str, path: KeyPath, other: Axis, merged: Merged) -> str:
    """What is said of a key that cannot be swept beside another, which may be another file's."""
    place = merged.place(other.path)
    where = f"{place.layer.file}:{place.line}"
    if key == other.key:
        alike = "; to replace its list, write the key as it stands there"
        return f"{key} is swept twice ({where}){alike if place.layer != merged.place(path).layer else ''}"
    return (
        f"{other.short} is swept, too ({where}), and each takes the place of the other: "
        "sweep one, make [variants] of the other"
    )


def _twice(axis: Axis, merged: Merged) -> Iterator[Problem]:
    """Values that stand twice, or whose names are the same."""
    names: dict[str, Any] = {}
    for number, value in enumerate(axis.values):
        name = _value_name(value)
        if name in names:
            other = names[name]
            said = f"{shown(value)} stands twice"
            if text(other) != text(value):
                said = f"{shown(other)} and {shown(value)} would give files of one name: make a [variants] of one"
            yield _problem(merged, (*axis.path, number), said)
        names.setdefault(name, value)


def _problem(merged: Merged, path: KeyPath, said: str) -> Problem:
    place = merged.place(path)
    key = ".".join(str(part) for part in path if isinstance(part, str))
    return Problem(place.layer.file, place.line, f"{quoted(key)[1:-1]}: {said}")


# names


def _short(point: Mapping[str, Any]) -> dict[str, str]:
    """Key -> its name in a variant's: without its table, unless two tables have it."""
    names = [_slug(key.rpartition(".")[2]) for key in point]
    return {
        key: name if names.count(name) == 1 else _slug(key.replace(".", "-"))
        for key, name in zip(point, names, strict=True)
    }


def _value_name(value: Any) -> str:
    """A value as it follows its key: `3e-4` and `-3.2` at once, words after a hyphen."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _slug(text(value))
    plain = text(value)
    if isinstance(value, list):
        plain = "-".join(plain.split(", ")) or "none"
    slug = _slug(plain).lstrip("._-")
    if slug != plain.lower() or not slug or len(slug) > LONGEST_VALUE:  # not all of it is said
        slug = "-".join(filter(None, [slug[: LONGEST_VALUE - 8].rstrip("._-"), digest_json(_json(value))[:6]]))
    return f"-{slug}"


def _slug(plain: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).rstrip("._-")


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _number(value: float) -> str:
    """0.0003 -> 3e-4, 0.25 -> 0.25, 16.0 -> 16."""
    plain = repr(value)
    if plain in ("inf", "-inf", "nan"):
        return plain
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    shortest = next(one for digits in range(17) if float(one := f"{value:.{digits}e}") == value)
    mantissa, _, exponent = shortest.partition("e")
    scientific = f"{mantissa}e{int(exponent)}"
    return scientific if len(scientific) < len(plain) or "e" in plain else plain


# places


def _put(table: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
    table[keys[-1]] = value


def _point_to(origin: dict[KeyPath, Place], path: KeyPath, place: Place) -> None:
    """The value at `path`, and all within it, stands at `place`."""
    for one in [one for one in origin if one[: len(path)] == path]:
        origin[one] = Place(place.layer, (*place.path, *one[len(path) :]))
    origin[path] = place
