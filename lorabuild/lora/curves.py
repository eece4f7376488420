"""What a resize would keep at many thresholds at once: ranks of each layer and what is lost, by the rule of `ranks`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorabuild.lora.ranks import CAPS, OWN, SELECTORS, References, cap, count_of, scores

if TYPE_CHECKING:
    import numpy as np

POINTS = 200
STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of thresholds, so that one to copy is short
EDGE = 1e-3  # the part of all ranks that may lie below the first threshold: σ of 0 scores far below all others


@dataclass(frozen=True)
class Curve:
    """`counts` [layers, points]: ranks that stay at each of `values` of the recipe's `key`, in the order of `names`.

    `lost` [points]: ‖ΔW - ΔW'‖ / ‖ΔW‖ of all layers together, before `rescale`; the layers' own norms add up squared.
    """

    key: str
    values: list[float]
    names: list[str]
    counts: np.ndarray
    lost: np.ndarray


def key_of(recipe: Mapping[str, Any]) -> str:
    """The key that a curve runs over: the recipe's selector, its cap if it has none; for a size, the thr that gives it."""
    selector = next((key for key in SELECTORS if key in recipe), None)
    if selector is None:
        return CAPS[0] if CAPS[0] in recipe else CAPS[1]
    return "thr" if selector == "size" else selector


def curve(recipe: Mapping[str, Any], layers: Mapping[str, References], values: Sequence[float]) -> Curve:
    """What the recipe keeps with its selector, or cap, set to each of `values`, ascending: all else stays as it is."""
    import numpy as np

    key = key_of(recipe)
    rest = {name: value for name, value in recipe.items() if name not in (key, "size")}
    trained = {name: layer for name, layer in layers.items() if not layer.is_zero}
    counts, kept = np.zeros((len(trained), len(values)), np.int64), np.zeros(len(values))
    for row, layer in enumerate(trained.values()):
        found = scores(rest, layer)
        order = (-found).argsort(kind="stable")
        counts[row] = _counts(rest, layer, found[order], key, values)
        squares = np.square(layer.singular.astype("f8")[order])
        kept += np.concatenate([[0.0], squares.cumsum()])[counts[row]]
    whole = math.fsum(float(np.square(layer.singular.astype("f8")).sum()) for layer in layers.values())
    lost = np.sqrt(np.clip(1 - kept / whole, 0, 1)) if whole else np.zeros(len(values))
    return Curve(key, list(values), list(trained), counts, lost)


def _counts(
    recipe: Mapping[str, Any], layer: References, ranked: np.ndarray, key: str, values: Sequence[float]
) -> np.ndarray:
    """[points]: how many ranks of a layer stay; `ranked` [P] are its scores, descending."""
    import numpy as np

    if key == "thr":
        there = ranked[ranked > -np.inf]
        found = np.searchsorted(-there, -np.asarray(values), side="right")  # those with a score >= value
        return np.minimum(found, cap(recipe, layer))
    each = ({**recipe, key: value} for value in values)
    return np.array([min(len(ranked), cap(one, layer), count_of(one, layer, ranked, -math.inf)) for one in each])


def grid(recipe: Mapping[str, Any], layers: Mapping[str, References]) -> list[float]:
    """Some 200 values of the key, from where nearly all is kept to where nearly all is gone, in round numbers."""
    import numpy as np

    key, trained = key_of(recipe), [layer for layer in layers.values() if not layer.is_zero]
    if not trained:
        return []
    if key == "thr":
        found = np.concatenate([scores(recipe, layer) for layer in trained])
        found = np.sort(found[np.isfinite(found)])
        if not len(found):
            return []
        low, high = found[int(EDGE * len(found))], found[-1]
        step = next((one for one in STEPS if (high - low) / one <= POINTS), STEPS[-1])
        return [round(place * step, 3) for place in range(math.floor(low / step), math.ceil(high / step) + 1)]
    if key in OWN[1:]:
        return [round(place / POINTS, 3) for place in range(1, POINTS + 1)]
    if key == "sv_ratio":
        ratios = [layer.singular[0] / layer.singular[layer.singular > 0][-1] for layer in trained]
        stops = math.log10(max(10.0, min(float(max(ratios)), 1e6)))
        return sorted({float(f"{10 ** (place * stops / POINTS):.3g}") for place in range(POINTS + 1)})
    return [float(rank) for rank in range(1, max(len(layer.singular) for layer in trained) + 1)]
