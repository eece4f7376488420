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
from lorabuild.updates import counted


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


def _schedule(recipe: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    from lorabuild.nn.schedule import learning_rate_factor

    recipe = counted(recipe, 1)  # as if an epoch had one batch: the data set says how many, which is not looked at here
    for update in sorted({0, recipe["max_train_steps"] // 2, recipe["max_train_steps"] - 1}):
        learning_rate_factor(recipe, update)
    return {}


PARTS: dict[str, Callable[[Mapping[str, Any], Path | None], dict[str, Any]]] = {
    "LB070": _adapter,
    "LB072": _schedule,
}

if __name__ == "__main__":
    main()
