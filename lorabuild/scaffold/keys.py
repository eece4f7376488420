"""Keys of a manifest as people write them: `dataset.subset[0].num_repeats`."""

from __future__ import annotations

import re

from lorabuild.errors import UsageError
from lorabuild.manifest.layers import KeyPath
from lorabuild.names import quoted
from lorabuild.tomltext import key_written

_PART = r'("[^"\\]+"|[A-Za-z0-9_-]+)(?:\[(\d{1,6})\])?'  # a key, and which element of its list


def dotted(path: KeyPath) -> str:
    """`dataset.subset[0].num_repeats`, as `key_path` reads it."""
    said = "".join(f"[{part}]" if isinstance(part, int) else f".{key_written(part)}" for part in path)
    return said.removeprefix(".")


def key_path(text: str) -> KeyPath:
    """The parts of `dataset.subset[0].num_repeats`. Raises UsageError for what is no such key."""
    if not re.fullmatch(rf"{_PART}(?:\.{_PART})*", text):
        raise UsageError(
            f"{quoted(text)}: not a key; keys are written as in resize.thr or dataset.subset[0].num_repeats"
        )
    path: KeyPath = ()
    for found in re.finditer(_PART, text):
        name, number = found.groups()
        path = (*path, name.strip('"'), *([int(number)] if number else []))
    return path
