"""Say what pydantic found in the user's words: where, what is expected, and a near miss."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_origin

from lorabuild.errors import Problem, near_miss
from lorabuild.manifest.later import REFUSED, later_key, later_value
from lorabuild.manifest.layers import KeyPath
from lorabuild.manifest.merge import Merged
from lorabuild.manifest.schema import Table, table_at, walk
from lorabuild.manifest.values import Misfit, Misfits, shown
from lorabuild.names import quoted

UNKNOWN, MISSING, TOGETHER = "extra_forbidden", "missing", "together"

# pydantic's type of error -> what is expected
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "string_too_short": "text that is not empty",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:.10g}",
    "less_than_equal": "{le:.10g} or less",
    "multiple_of": "a multiple of {multiple_of:g}",
    "too_short": "{min_length} or more of them",
    "too_long": "{max_length} of them",
}


@dataclass(frozen=True)
class Fault:
    """One error of pydantic's: its kind, the path of the value in the merged table, and what the user reads."""

    kind: str
    path: KeyPath
    problem: Problem


def faults(errors: Iterable[dict[str, Any]], model: type[Table], merged: Merged) -> list[Fault]:
    """All errors of one validation. A misspelled required key is unknown and missing at once: that is told once."""
    found = [_fault(error, cause, model, merged) for error in errors for cause in _causes(error)]
    unknown = [fault.path for fault in found if fault.kind == UNKNOWN]

    def is_told(fault: Fault) -> bool:
        wanted = str(fault.path[-1])
        beside = [str(path[-1]) for path in unknown if path[:-1] == fault.path[:-1]]
        return any(near_miss(key, [wanted]) for key in beside)

    return [fault for fault in found if not (fault.kind == MISSING and is_told(fault))]


def _causes(error: dict[str, Any]) -> Iterable[ValueError | None]:
    """What our own checks raised, if it was one of them."""
    cause = error.get("ctx", {}).get("error")
    return cause.misfits if isinstance(cause, Misfits) else [cause]


def _fault(error: dict[str, Any], cause: ValueError | None, model: type[Table], merged: Merged) -> Fault:
    path: KeyPath = error["loc"]
    kind = error["type"]
    if kind != UNKNOWN and path[-1:] == ("[key]",):  # what pydantic adds where a key itself is wrong, not its value
        path = path[:-1]
    if isinstance(cause, Misfit):
        kind, path = TOGETHER, (*path, *(int(part) if part.isdigit() else part for part in cause.key.split(".")))
    place = merged.place(path)
    dotted = ".".join(_bare(part) for part in place.path if isinstance(part, str))
    said = _said(error, cause, path, model)
    return Fault(kind, path, Problem(place.layer.file, place.line, f"{dotted}: {said}" if dotted else said))


def _said(error: dict[str, Any], cause: ValueError | None, path: KeyPath, model: type[Table]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    while path and isinstance(path[-1], int):  # an element of a list: the list's key knows more of it
        path = path[:-1]
    if kind == UNKNOWN:
        return _unknown(path, value, model)
    if kind == MISSING:
        description = table_at(model, path[:-1]).model_fields[path[-1]].description
        return f"required, but missing: {description}"
    if kind == "literal_error":
        return _no_option(path, value, re.findall(r"'([^']*)'", context["expected"]), context["expected"], model)
    if kind == "list_type" and isinstance(value, dict):
        return f"expected a list of tables: double brackets, [[{'.'.join(map(str, path))}]]"
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind].format(**context)}, got {shown(value)}"
    return str(cause or error["msg"])


def _unknown(path: KeyPath, value: Any, model: type[Table]) -> str:
    *above, key = path
    table, what = table_at(model, tuple(above)), "table" if isinstance(value, dict) else "key"
    if why := REFUSED.get(f"{_name(table)}.{key}"):
        return why
    if later_key(_name(table), key):
        return "not supported yet"
    near, owner = near_miss(key, table.model_fields), _owner(key, model)
    if not owner:
        return f"unknown {what}{near}"
    return (
        f"unknown {what}{near}; {owner} has one of this name"
        if near
        else f"unknown {what} here (it belongs to {owner})"
    )


def _name(table: type[Table]) -> str:
    """A table's name, whether or not it has more required keys where a LoRA is trained."""
    return table.__name__.removeprefix("Trained")


def _owner(key: str, model: type[Table]) -> str:
    """The header of the table that has such a key; empty if none has."""
    known = dict(walk(model))
    owners = [owner for owner, _, name in (path.rpartition(".") for path in known) if name == key and owner]
    if not owners:
        return ""
    header = f"[{owners[0].replace('*', '<name>')}]"
    return f"[{header}]" if get_origin(getattr(known.get(owners[0]), "annotation", None)) is list else header


def _bare(key: str) -> str:
    """A key as TOML writes it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else quoted(key)


def _no_option(path: KeyPath, value: Any, options: list[str], expected: str, model: type[Table]) -> str:
    table = table_at(model, path[:-1])
    choice = " or ".join(f'"{option}"' for option in options) or expected
    if table and later_value(_name(table), str(path[-1]), value):
        return f"{shown(value)} is not supported yet, {choice} is"
    return f"expected {choice}, got {shown(value)}{near_miss(str(value), options)}"
