"""The curves of a training, from its log: loss, held-out loss, learning rates and norms, with what was saved marked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from lorabuild.report.files import ProjectFiles
from lorabuild.training.phases import phase_ends

TITLE = "Curves"
LIBRARIES = ("uplot.css", "uplot.js")
MOST_POINTS = 4000  # of a curve: more than a screen has pixels; a longer log is thinned
TABLE_ROWS = 40
PARTS = 2**60  # of one: far below the six digits that a log has of a loss
NORMS = {"average_key_norm": "weight norm, mean", "max_key_norm": "weight norm, largest"}


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """Series by plot, steps from 1. None where there is no log of a training."""
    path = files.path("log")
    if path is None:
        return None
    records = read_log(path)
    steps = [{"lr": {}} | one for one in records if one.get("event") == "step" and "step" in one]
    if not steps:
        return None
    stride = -(-len(steps) // MOST_POINTS)
    window = max(5, len(steps) // 20)
    x = [one["step"] for one in steps]
    loss = [one.get("loss") for one in steps]
    series = {"loss": loss, "smoothed": trailing_mean(loss, window)}
    held = held_out(records, x)
    rates = {f"lr {group}": [one["lr"].get(group) for one in steps] for group in _groups(steps)}
    norms = {"gradient norm": [one.get("grad_norm") for one in steps]}
    norms |= {name: [one.get("max_norm", {}).get(key) for one in steps] for key, name in NORMS.items()}
    shown = {name: values for name, values in norms.items() if any(value is not None for value in values)}
    kept = sorted({*range(0, len(steps), stride), len(steps) - 1})
    return {
        "steps": [x[place] for place in kept],
        "series": {name: [values[place] for place in kept] for name, values in series.items()},
        "held_out": held,
        "rates": {name: [values[place] for place in kept] for name, values in rates.items()},
        "norms": {name: [values[place] for place in kept] for name, values in shown.items()},
        "window": window,
        "thinned": stride if stride > 1 else 0,
        "snapshots": list(files.snapshots),
        "phases": _phases(files),
        "summary": _summary(series["smoothed"], held, window),
        "table": _table(x, series["smoothed"], loss, held, rates, shown),
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of train.jsonl; a line that is cut off is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            found.append(one)
    return found


def trailing_mean(values: Sequence[float | None], window: int) -> list[float | None]:
    """At each place the mean of the last `window` values, fewer at the start; None where none of them is a number."""
    known = [value if value is not None and math.isfinite(value) else None for value in values]
    # Sums of all before, of which two give that of any window; in whole parts, so that no peak swallows what follows.
    sums = [0, *accumulate(0 if value is None else int(value * PARTS) for value in known)]
    counts = [0, *accumulate(value is not None for value in known)]
    found: list[float | None] = []
    for stop in range(1, len(values) + 1):
        start = max(0, stop - window)
        count = counts[stop] - counts[start]
        found.append((sums[stop] - sums[start]) / count / PARTS if count else None)
    return found


def held_out(records: Sequence[Mapping[str, Any]], x: Sequence[int]) -> list[tuple[int, float]]:
    """(step, loss): before the first step is step 0."""
    places = {"before": 0, "after": x[-1]}
    found = {
        one.get("step", places.get(one.get("when", ""), 0)): one["loss"]
        for one in records
        if one.get("event") == "held_out" and one.get("loss") is not None
    }
    return sorted(found.items())


def _groups(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The groups that learn at any step."""
    groups = dict.fromkeys(group for one in steps for group in one.get("lr", {}))
    return [group for group in groups if any(one["lr"].get(group) for one in steps)]


def _phases(files: ProjectFiles) -> list[int]:
    """The last steps of the phases but for the last one."""
    recipe = files.settings["recipe"]
    return list(phase_ends(recipe))[:-1] if recipe.get("phases") else []


def _summary(smoothed: Sequence[float | None], held: Sequence[tuple[int, float]], window: int) -> list[tuple[str, str]]:
    """What one asks of a training first."""
    means = [value for value in smoothed if value is not None]
    found = [("steps", f"{len(smoothed):,}")]
    if means:
        found.append(("loss", f"{means[min(window, len(means)) - 1]:.4f} → {means[-1]:.4f}"))
    if held:
        best = min(held, key=lambda one: one[1])
        found.append(("held-out loss", f"{held[0][1]:.4f} → {held[-1][1]:.4f}"))
        found.append(("lowest held-out", f"{best[1]:.4f} at step {best[0]:,}"))
    return found


def _table(
    x: Sequence[int],
    smoothed: Sequence[float | None],
    loss: Sequence[float | None],
    held: Sequence[tuple[int, float]],
    *others: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """Some rows of all of it, for those who read rather than look."""
    stride = max(1, -(-len(x) // TABLE_ROWS))
    places = sorted({*range(stride - 1, len(x), stride), len(x) - 1})
    at = dict(held)
    columns = {name: values for group in others for name, values in group.items()}
    rows = [
        [x[place], loss[place], smoothed[place], at.get(x[place]), *(values[place] for values in columns.values())]
        for place in places
    ]
    return {"heads": ["step", "loss", "smoothed", "held-out", *columns], "rows": rows}
