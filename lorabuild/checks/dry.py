"""Make adapters, optimizers and schedules dry, in a process of its own: `python -m lorabuild.checks.dry`.

It reads a JSON list of tasks, {"recipe": …, "base": folder or null}, and writes a JSON line a task: {"adapter": numbers or
null, "faults": [[code, message], …], "notes": […]}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorabuild.errors import UserError
from lorabuild.training.updates import counted

BASE = "LB021"


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    for task in json.loads(sys.stdin.read()):
        out.write(json.dumps(tried(task["recipe"], Path(task["base"]) if task["base"] else None)) + "\n")
        out.flush()


def tried(recipe: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    """What became of one task. Whatever a library raises is a fault of its part, and the rest is tried all the same."""
    faults: list[tuple[str, str]] = []
    found: dict[str, Any] = {"adapter": None, "faults": faults, "notes": []}
    for code, part in PARTS.items():
        if part is _adapter and faults:
            continue  # on no base there is none
        try:
            found |= part(recipe, base)
        except UserError as error:
            faults += [(code, str(problem)) for problem in error.problems]
        except Exception as error:
            faults.append((code, f"recipe: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    return found


def _adapter(recipe: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    from lorabuild.nn.dry import dry

    return {"adapter": asdict(dry(recipe, base))}


def _optimizer(recipe: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    import torch

    from lorabuild.nn.optimizers import try_optimizer
    from lorabuild.training.optimizers import warnings

    try:
        try_optimizer(recipe)
    except UserError:  # some work on a GPU alone; it may be busy, so that it is not the first to be asked
        if not torch.cuda.is_available():
            raise
        try_optimizer(recipe, "cuda")
    return {"notes": warnings(recipe)}


def _schedule(recipe: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    from lorabuild.nn.optimizers import try_optimizer, try_schedule

    recipe = counted(recipe, 1)  # as if an epoch had one batch: the data set says how many, which is not looked at here
    try:
        optimizer = try_optimizer(recipe)
    except UserError:  # told by _optimizer; the schedule is tried all the same
        optimizer = try_optimizer({**recipe, "optimizer_type": "AdamW", "optimizer_args": {}})
    try_schedule(recipe, optimizer)
    return {}


def _base(recipe: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    """Its networks, by the headers of its files: all their weights are there, and no others."""
    from lorabuild.nn.dry import meta_base

    try:
        meta_base(base)
    except UserError as error:
        raise UserError(*(f"base.file: {problem}" for problem in error.problems)) from None
    return {}


PARTS: dict[str, Callable[[Mapping[str, Any], Path | None], dict[str, Any]]] = {
    BASE: _base,
    "LB070": _adapter,
    "LB071": _optimizer,
    "LB072": _schedule,
}

if __name__ == "__main__":
    main()
