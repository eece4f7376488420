"""Change one value of a TOML text and leave every other byte as it is: comments, order, spacing, line ends."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from lorabuild.errors import UsageError
from lorabuild.manifest.layers import KeyPath
from lorabuild.scaffold.keys import dotted
from lorabuild.scaffold.nodes import Nodes

BOM = b"\xef\xbb\xbf"


def with_value(data: bytes, path: KeyPath, raw: str, instead_of: KeyPath | None = None) -> bytes:
    """`data` with the TOML value `raw` at `path`, in its place if it has one, else after the last key of its table.

    With `instead_of`, a key of the same table, the value takes that key's line. Raises UsageError for what has no place.
    """
    table = _said(_text(data))
    if instead_of:
        _drop(table, instead_of)
    _set_in(table, path, _said(f"v = {raw}")["v"])
    return _checked(
        data,
        path,
        [table],
        lambda file: file.replaced(instead_of, path, raw) if instead_of else file.written(path, raw),
    )


def without(data: bytes, path: KeyPath) -> bytes:
    """`data` without the key, table or element of a list at `path`. Raises KeyError if it has none."""
    table = _said(_text(data))
    _drop(table, path)
    expected = [deepcopy(table)]
    for length in range(len(path) - 1, 0, -1):  # headers may be gone with the last that they were for
        if _at(table, path[:length]) != {}:
            break
        _drop(table, path[:length])
        expected.append(deepcopy(table))
    return _checked(data, path, expected, lambda file: file.removed(path))


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig")


def _said(text: str) -> dict[str, Any]:
    """What TOML says, floats as they are written: nan is not equal to itself."""
    return tomllib.loads(text, parse_float=lambda number: (float, number))


def _checked(data: bytes, path: KeyPath, expected: Sequence[Any], change: Callable[[Nodes], bytes]) -> bytes:
    """What `change` makes of the file, if it then says what is expected and nothing else: an edit is never a guess."""
    mark, body = (BOM, data[len(BOM) :]) if data.startswith(BOM) else (b"", data)
    changed = change(Nodes(body))
    try:
        if _said(changed.decode()) in expected:
            return mark + changed
    except ValueError:
        pass
    raise UsageError(f"{dotted(path)}: written in a way that is not edited here: change the file by hand")


def _at(table: Any, path: KeyPath) -> Any:
    for part in path:
        table = table[part]
    return table


def _set_in(table: Any, path: KeyPath, value: Any) -> None:
    """Put `value` at `path` of a file's content. Raises UsageError for what has no place."""
    for number, part in enumerate(path):
        last, around = number == len(path) - 1, dotted(path[:number])
        if isinstance(part, int):
            if not isinstance(table, list):
                raise UsageError(f"{dotted(path)}: {around} is no list")
            if part > len(table) or (part == len(table) and last):
                said = f"has {len(table)}, counted from 0" if table else "is empty"
                raise UsageError(f"{dotted(path)}: {around} {said}")
            if part == len(table):
                table.append({})
        elif not isinstance(table, dict):
            which = f": say which, {dotted((*path[:number], 0, *path[number:]))}" if isinstance(table, list) else ""
            raise UsageError(f"{dotted(path)}: {around} is no table{which}")
        elif not last:
            table.setdefault(part, [] if isinstance(path[number + 1], int) else {})
        if last:
            table[part] = value
        else:
            table = table[part]


def _drop(table: Any, path: KeyPath) -> None:
    """Take `path` out of the content of a file. Raises KeyError if it is not in it."""
    try:
        del _at(table, path[:-1])[path[-1]]
    except (KeyError, IndexError, TypeError):
        raise KeyError(dotted(path)) from None
