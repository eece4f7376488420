"""What the verbs share that look at a repository and change nothing: how it is opened, tables, colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorabuild.cli import find_root
from lorabuild.colours import paint
from lorabuild.engine import Engine
from lorabuild.errors import UsageError
from lorabuild.session import opened


@contextmanager
def reading() -> Iterator[Engine]:
    """The engine of the repository here or above: no lock, no run log, no worker.

    Raises UsageError where there is no repository.
    """
    with opened(root_here(), writing=False, building=False) as engine:
        yield engine


def root_here() -> Path:
    """The repository of the working folder. Raises UsageError if there is none."""
    root = find_root(Path.cwd())
    if root is None:
        raise UsageError(
            "no repository here or above: no folder holds lorabuild.toml or projects/*/lora.toml (`lorabuild init` makes one)"
        )
    return root


def table(
    rows: Sequence[Sequence[str]], right: Sequence[int] = (), colours: Mapping[str, str] | None = None
) -> list[str]:
    """Lines with aligned columns; the columns `right` are numbers. `colours` by a cell's text, from the second column on."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            (cell.rjust if number in right else cell.ljust)(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        if colours:
            cells[1:] = [
                paint(padded, colours[cell]) if cell in colours else padded
                for cell, padded in zip(row[1:], cells[1:], strict=True)
            ]
        lines.append("  ".join(cells).rstrip())
    return lines
