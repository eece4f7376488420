"""See whether what is built could be written, before anything is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lorabuild.findings import Finding, found


def output_findings(root: Path, folders: list[str]) -> Iterator[Finding]:
    """One for each of `folders` of the repository that can be neither written to nor made."""
    for name in folders:
        if said := fault(root / name):
            yield found("LB090", name, said)


def fault(folder: Path) -> str:
    """Why nothing can be written there; empty if something can."""
    nearest = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        return "not a folder, but what is built is written there" if nearest == folder else f"{nearest} is not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return "may not be written to" if nearest == folder else f"{nearest} may not be written to"
    return ""
