"""The sweep of a project: its variants side by side, and size, error and held-out loss over each swept value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.header import read_header
from lorabuild.lora.layers import read_layers
from lorabuild.lora.ranks import resolve_recipe, scores
from lorabuild.manifest.matrix import text
from lorabuild.names import block_of, resolve_chop
from lorabuild.report.files import ProjectFiles
from lorabuild.report.index import overall

if TYPE_CHECKING:
    from lorabuild.lora.ranks import References

TITLE = "Sweep"
LIBRARIES = ("uplot.css", "uplot.js")
MAKING = ("train", "spectrum", "resize", "chop")
# Column -> what it is called, and the filter that writes it
MEASURES = {
    "resized": ("Resized", "size"),
    "error": ("Error", "percent"),
    "chopped": ("Chopped", "size"),
    "kept": ("Energy kept", "percent"),
    "before": ("Held-out before", "loss"),
    "after": ("Held-out after", "loss"),
    "training": ("Trained in", "seconds"),
    "rest": ("Made in", "seconds"),
}
PLOTTED = {"resized": "Size of the resized file", "error": "Error of the resize"}
CHOPPED = {"chopped": "Size of the chopped file", "kept": "Energy that the chop keeps"}
MOST_LINES = 6  # in a plot: more cannot be told apart
LONGEST_LABEL = 16  # on an axis
# With another objective a loss is another measure
OBJECTIVE = ("loss_type", "huber_c", "huber_schedule", "huber_scale", "min_snr_gamma", "debiased_estimation_loss")


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """The table, sorted by value, and the plots. None without a [matrix]."""
    swept = [one for one in files.variants.values() if one.swept]
    if not swept:
        return None
    keys = list(swept[0].swept)
    places = {key: _places([one.swept[key] for one in swept]) for key in keys}
    order = sorted(swept, key=lambda one: [places[key][text(one.swept[key])] for key in keys])
    spectra = cache(_spectrum)
    own = _row(files, {key: _own(files, key) for key in keys}, spectra)
    rows = [_row(one, one.swept, spectra) for one in order]
    trained = any(key.startswith("recipe.") for key in keys)
    shown = [key for key in MEASURES if any(row["measures"][key] is not None for row in rows)]
    columns = [key for key in shown if trained or key not in ("before", "after", "training")]
    return {
        "keys": [{"key": key, "short": key.rpartition(".")[2], "places": places[key]} for key in keys],
        "columns": [{"key": key, "name": MEASURES[key][0], "filter": MEASURES[key][1]} for key in columns],
        "own": own,
        "rows": rows,
        "plots": list(_plots(keys, places, rows, columns)),
        "arithmetic": f"{' × '.join(f'{_short(key)} {len(places[key])}' for key in keys)} = {len(rows)} variants",
        "objective": sorted({_short(key) for key in keys} & {*OBJECTIVE}),
    }


def _row(files: ProjectFiles, values: Mapping[str, Any], spectra: Callable[..., Any]) -> dict[str, Any]:
    states = {stage: files.states[stage] for stage in MAKING if stage in files.states}
    file = next((files.path(role) for role in ("chopped", "resized", "trained") if files.path(role)), None)
    loss = _loss(files.path("facts"))
    error, kept = _energy(files, spectra)
    return {
        "name": files.name.partition("@")[2],
        "file": file.name if file else None,
        "values": {key: text(value) for key, value in values.items()},
        "numbers": {key: _plain_number(value) for key, value in values.items()},
        "measures": {
            "resized": _bytes(files.path("resized")) if files.settings["resize"] else None,
            "error": error,
            "chopped": _bytes(files.path("chopped")) if files.settings["chop"] is not None else None,
            "kept": kept,
            "before": loss[0],
            "after": loss[1],
            "training": _seconds(files, ("train",)),
            "rest": _seconds(files, MAKING[1:]),
        },
        "state": overall(one.state for one in states.values()),
        "failure": next((one.failure for one in states.values() if one.failure), None),
    }


def _own(files: ProjectFiles, key: str) -> Any:
    """The project's own value of a swept key; an empty text where it has none."""
    found: Any = files.settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return "" if found is None else found


def _places(values: Sequence[Any]) -> dict[str, int]:
    """The place of each value in its order: numbers by size, others as they were written."""
    distinct = {text(value): value for value in values}
    if all(_plain_number(value) is not None for value in distinct.values()):
        distinct = dict(sorted(distinct.items(), key=lambda one: one[1]))
    return {said: place for place, said in enumerate(distinct)}


def _plain_number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _bytes(path: Path | None) -> int | None:
    return path.stat().st_size if path else None


def _seconds(files: ProjectFiles, stages: Sequence[str]) -> float | None:
    """What its last builds took, of jobs that others share, too."""
    found = [files.states[stage].record for stage in stages if stage in files.states]
    known = [record["seconds"] for record in found if record and record.get("seconds") is not None]
    return sum(known) if known else None


def _loss(path: Path | None) -> tuple[float | None, float | None]:
    """The held-out loss before and after the training."""
    if path is None:
        return None, None
    facts = json.loads(path.read_bytes())
    return facts.get("loss_before"), facts.get("loss_after")


# energy


def _spectrum(path: Path) -> dict[str, References]:
    """Singular values and norms of each layer. The dtype says how a new file is written, and nothing of these."""
    from lorabuild.stages.resize import read_spectrum

    return dict(read_spectrum(path, "F16")[1].references)


def _energy(files: ProjectFiles, spectra: Callable[[Path], dict[str, References]]) -> tuple[float | None, float | None]:
    """(error of the resize, energy that the chop keeps), of what was trained: ‖lost‖ / ‖ΔW‖, and Σ w²‖kept‖² / ‖ΔW‖².

    ΔW is what all layers together add to the base, and ‖·‖ is Frobenius', by the singular values of the spectrum.
    """
    path, resized = files.path("spectrum"), files.path("resized")
    if path is None or resized is None or not files.settings["resize"]:
        return None, None
    import numpy as np

    references, recipe = spectra(path), resolve_recipe(files.settings["resize"])
    header = read_header(resized)
    layers, _ = read_layers(header.tensors, header.metadata)
    ranks = {layer.name: layer.rank for layer in layers}
    weights = resolve_chop(files.settings["chop"]) if files.settings["chop"] is not None else {}
    whole = kept = chopped = 0.0
    for name, layer in references.items():
        energies = np.square(layer.singular.astype(np.float64))
        whole += float(energies.sum())
        if rank := ranks.get(name):
            best = np.argsort(-scores(recipe, layer), kind="stable")[:rank]
            own = float(energies[best].sum())
            kept += own
            chopped += own * weights.get(block_of(name) or "", 1.0) ** 2
    if not whole:
        return None, None
    return math.sqrt(max(0.0, 1 - kept / whole)), chopped / whole if weights else None


# plots


def _plots(
    keys: Sequence[str],
    places: Mapping[str, Mapping[str, int]],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """For each swept key of two values and more: each measure over it, a line for each combination of the others.

    Values of many words, as blocks are, stand in the table alone.
    """
    for key in keys:
        if len(places[key]) < 2 or any(len(said) > LONGEST_LABEL for said in places[key]):
            continue
        files = CHOPPED if key.startswith("chop.") or "resized" not in columns else PLOTTED
        wanted = files | ({"after": "Held-out loss"} if key.startswith("recipe.") else {})
        for measure, name in wanted.items():
            if measure not in columns:
                continue
            # A stage sees what stands in the tables up to its own: the others' values make no other line.
            seen = {"after": ("recipe",), **dict.fromkeys(PLOTTED, ("recipe", "resize"))}.get(measure)
            others = [one for one in keys if one != key and (seen is None or one.partition(".")[0] in seen)]
            lines = _lines(key, others, places[key], rows, measure)
            yield {
                "id": f"sweep-{_short(key)}-{measure}".replace(".", "-"),
                "title": f"{name} over {_short(key)}",
                "key": _short(key),
                "measure": measure,
                "values": list(places[key]),
                "numbers": _numbers(key, places[key], rows),
                "lines": lines[:MOST_LINES],
                "left_out": max(0, len(lines) - MOST_LINES),
            }


def _lines(
    key: str, others: Sequence[str], places: Mapping[str, int], rows: Sequence[Mapping[str, Any]], measure: str
) -> list[dict[str, Any]]:
    """[{"name", "values": one a place, None where nothing is known}]."""
    found: dict[str, list[float | None]] = {}
    names: dict[str, str] = {}
    for row in rows:
        name = ", ".join(f"{_short(other)} {row['values'][other]}" for other in others)
        line = found.setdefault(name, [None] * len(places))
        value = row["measures"][measure]
        line[places[row["values"][key]]] = value if value is None or math.isfinite(value) else None
        names[name] = name or MEASURES[measure][0].lower()
    return [{"name": names[name], "values": line} for name, line in found.items()]


def _numbers(key: str, places: Mapping[str, int], rows: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """The values as numbers, in their order; None if one of them is none."""
    found = {row["values"][key]: row["numbers"][key] for row in rows}
    numbers = [found[said] for said in places]
    return None if None in numbers else numbers
