"""See whether what is built could be written, before anything is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorabuild.findings import Finding, found
from lorabuild.stage import Job
from lorabuild.training.memory import CONTEXT, said
from lorabuild.training.updates import wanted_steps

COPIES = 2  # in the store and in build/


def output_findings(root: Path, folders: list[str]) -> Iterator[Finding]:
    """One for each of `folders` of the repository that can be neither written to nor made."""
    for name in folders:
        if said := fault(root / name):
            yield found("LB090", name, said)


def snapshot_count(train: Job, batches: int) -> int:
    """How many snapshots a training saves, of whose data set an epoch has `batches`."""
    return len(wanted_steps(train.params["recipe"], train.options["saved"], batches)) if batches else 0


def room_findings(root: Path, size: int, file: str, line: int) -> Iterator[Finding]:
    """`size`: bytes of all weights that a training saves; `file` and `line`: where the manifest says how often."""
    need, free = size * COPIES, shutil.disk_usage(root).free
    if need > free:
        said = f"recipe: the weights that are saved take {need / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
        yield found("LB075", file, said, line)


def memory_findings(need: Mapping[str, int], card: int | None, help: str, file: str, line: int) -> Iterator[Finding]:
    """`need`: what a training takes of a device; `card`: what this machine's has; `help`: what would make it fit."""
    if card is not None and sum(need.values()) + CONTEXT > card:
        yield found("LB077", file, f"recipe: it {said(need)}, and the card has {card / 1e9:.1f} GB: {help}", line)


def fault(folder: Path) -> str:
    """Why nothing can be written there; empty if something can."""
    nearest = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        return "not a folder, but what is built is written there" if nearest == folder else f"{nearest} is not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return "may not be written to" if nearest == folder else f"{nearest} may not be written to"
    return ""
