"""Shrink curves: what a resize would keep at other thresholds, from the spectrum's singular values and norms alone."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from lorabuild.header import byte_size, read_header
from lorabuild.lora.curves import Curve, curve, grid, key_of
from lorabuild.lora.layers import read_layers
from lorabuild.lora.ranks import CAPS, OWN, TERMS, resolve_recipe, scores
from lorabuild.lora.resizing import Resize
from lorabuild.report.files import ProjectFiles
from lorabuild.stages.resize import OWN_KIB, read_spectrum
from lorabuild.tensors import SAVE_DTYPES
from lorabuild.writing import header_bytes

TITLE = "Shrink"
BINS = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129)  # ranks from which the bars of the histogram begin


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """Curves of the project and of each variant by hand that resizes, as far as there is a spectrum."""
    found = [one for each in (files, *files.named.values()) if (one := _curves(each)) is not None]
    return {"bins": _bin_names(), "curves": found} if found else None


def _curves(files: ProjectFiles) -> dict[str, Any] | None:
    path, table = files.path("spectrum"), files.settings["resize"]
    if path is None or not table:
        return None
    _, resize = read_spectrum(path, SAVE_DTYPES[files.settings["recipe"]["save_precision"]])
    recipe = resolve_recipe(table)
    resize = replace(resize, recipe=recipe)
    values = grid(recipe, resize.references)
    if not values:
        return None
    now = _now(files, resize)
    if now is not None and now not in values:
        values.insert(bisect_left(values, now), now)
    found = curve(recipe, resize.references, values)
    zero = len(resize.references) - len(found.names)
    resized = files.path("resized")
    return {
        "name": files.name,
        "variant": files.name.partition("@")[2],
        "key": found.key,
        "now": now,
        "values": found.values,
        "sizes": _sizes(files, resize, found),
        "lost": [round(one, 6) for one in found.lost.tolist()],
        "ranks": found.counts.sum(axis=0).tolist(),
        "layers": (found.counts > 0).sum(axis=0).tolist(),
        "all_layers": len(resize.references),
        "before": _histogram([int((one.singular > 0).sum()) for one in resize.references.values()]),
        "after": [_histogram([*column, *[0] * zero]) for column in found.counts.T.tolist()],
        "built": resized.stat().st_size if resized else None,
        "state": files.states["resize"].state if "resize" in files.states else "never",
        "notes": list(_notes(recipe)),
    }


def _now(files: ProjectFiles, resize: Resize) -> float | None:
    """Where the recipe stands on the curve. For a size: the threshold that left what stands in build/, if it does."""
    recipe, key = resize.recipe, key_of(resize.recipe)
    if "size" not in recipe:
        return float(recipe[key])
    if (path := files.path("resized")) is None:
        return None
    header = read_header(path)
    layers, _ = read_layers(header.tensors, header.metadata)
    least = math.inf
    for layer in layers:
        if layer.name in resize.references and layer.rank:
            own = sorted(scores(recipe, resize.references[layer.name]).tolist(), reverse=True)
            least = min(least, own[min(layer.rank, len(own)) - 1])
    return math.floor(least * 1e4) / 1e4 if math.isfinite(least) else None


def _sizes(files: ProjectFiles, resize: Resize, found: Curve) -> list[int]:
    """[points]: bytes of the published file, its header included."""
    path = files.path("resized")
    told = dict(read_header(path).metadata) if path else {"": " " * OWN_KIB * 1024}
    metadata = {"": " " * (len(json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()) - len('{"":""}'))}
    sizes = []
    for column in found.counts.T.tolist():
        entries = resize.entries(dict(zip(found.names, column, strict=True)))
        body = sum(byte_size(dtype, shape) for _, dtype, shape in entries)
        sizes.append(len(header_bytes(entries, metadata)) + body)
    return sizes


def _histogram(ranks: list[int]) -> list[int]:
    """How many layers are in each bin."""
    found = [0] * len(BINS)
    for rank in ranks:
        found[bisect_left(BINS, rank + 1) - 1] += 1
    return found


def _bin_names() -> list[str]:
    pairs = [str(low) if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(BINS)]
    return [*pairs, f"{BINS[-1]}+"]


def _notes(recipe: Mapping[str, Any]) -> list[str]:
    """What is to be known of these curves, a sentence each."""
    terms = {term: recipe[term] for term in TERMS if term in recipe}
    own = next((key for key in OWN if key in recipe), None)
    caps = [f"{key} = {recipe[key]}" for key in CAPS if key in recipe]
    found = []
    if len(terms) > 1:
        said = " + ".join(f"{weight:.3g} × {term}" for term, weight in terms.items())
        found.append(
            f"The recipe has several terms: thr is a threshold of their sum, {said}, and the curve runs over that."
        )
    if "size" in recipe:
        found.append(
            f"The recipe says size = {recipe['size']:g} MiB. Marked is the thr that leaves the same ranks; of other "
            "weights it will be another. The line to copy takes the place of size."
        )
    if own:
        found.append(f"{own} looks at each layer alone, so there is no thr to show: the curve runs over {own}.")
    if not own and "thr" not in recipe and "size" not in recipe:
        found.append("The recipe has no threshold: the curve runs over its cap.")
    elif caps:
        found.append(f"{' and '.join(caps)} holds at every point.")
    if "rescale" in recipe:
        found.append(f"rescale = {recipe['rescale']:g} is not part of the error: that is of the ranks alone.")
    return found
