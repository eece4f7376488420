"""Say which ranks of a LoRA a resize keeps: resize_lora's recipe, read, checked and applied to singular values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorabuild.errors import near_miss
from lorabuild.names import quoted

if TYPE_CHECKING:
    import numpy as np

# What a singular value is compared with; see `References`. The first two need the base's norms, subspace the base.
TERMS = ("fro_ckpt", "spn_ckpt", "fro_lora", "spn_lora", "subspace", "params")
# How many ranks stay; one of them. The last three are sd-scripts' and look at the layer's own singular values only.
SELECTORS = ("thr", "size", "sv_ratio", "sv_fro", "sv_cumulative")
OWN = SELECTORS[2:]
CAPS = ("max_rank", "max_conv_rank")
KEYS = (*TERMS, *SELECTORS, *CAPS, "rescale")
MIB = 1 << 20

ZERO = 1e-6  # a layer whose largest singular value is below counts as untrained; resize_lora's own constant


@dataclass(frozen=True)
class References:
    """What the ranks of one layer are weighed against.

    singular [P], descending, of alpha / R · up @ down; fro_ckpt and spn_ckpt, the Frobenius and the spectral norm of the
    base's weight [O, I, *k]; params = O + I·∏k, the numbers that one rank takes; subspace [P], |u_iᵀ W v_i|, if needed.
    """

    singular: np.ndarray
    fro_ckpt: float
    spn_ckpt: float | None
    params: int
    convolution: bool
    subspace: np.ndarray | None = None

    @property
    def is_zero(self) -> bool:
        return not self.singular.size or bool(self.singular[0] < ZERO)


def parse_recipe(text: str) -> dict[str, float]:
    """`fro_ckpt=1,thr=-3.55` as a table: a score without a number has weight 1. Raises ValueError in one line."""
    table: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key not in KEYS:
            raise ValueError(f"{quoted(key)}: no such key of a recipe{near_miss(key, KEYS)}")
        if key in table:
            raise ValueError(f"{key} stands twice")
        if not equals and key not in TERMS:
            raise ValueError(f"{key} needs a number, as in {key}=1")
        try:
            table[key] = float(value) if equals else 1.0
        except ValueError:
            raise ValueError(f"{key} needs a number, got {quoted(value)}") from None
    terms, own = [key for key in TERMS if key in table], [key for key in OWN if key in table]
    if terms and own:
        raise ValueError(f"{own[0]} looks at a layer's own singular values: {', '.join(terms)} has no effect with it")
    return table


def resolve_recipe(table: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe in one spelling: weights of terms that add up to 1, one selector, what has no effect left out.

    Equal results have equal tables, as far as the table shows it: they are part of a key. Without a term, and where the
    selector does not look at the layer's own spectrum alone, it is fro_ckpt. Raises ValueError in one line.
    """
    given = _given(table)
    for _, said in _faults(given):
        raise ValueError(said)
    selectors = [key for key in SELECTORS if key in given]
    rescale = given.get("rescale", 1.0)
    return {
        **_weights({key: given[key] for key in TERMS if key in given}, selectors),
        **{key: given[key] + 0.0 for key in selectors},  # -0 is 0
        **{key: int(given[key]) for key in CAPS if key in given},
        **({"rescale": rescale} if rescale != 1 else {}),
    }


def recipe_faults(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All that is wrong with a recipe: the key to change, and what `resolve_recipe` says of it."""
    return list(_faults(_given(table)))


def _given(table: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key in KEYS if (value := table.get(key)) is not None}


def _faults(given: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        fits, wanted = _RANGES.get(key, (lambda value: True, ""))
        if not math.isfinite(value):
            yield key, f"{key} is {value:g}: a finite number is expected"
        elif not fits(value):
            yield key, f"{key} is {value:g}; it is {wanted}"
    selectors, terms = [key for key in SELECTORS if key in given], [key for key in TERMS if key in given]
    if len(selectors) > 1:
        yield selectors[0], f"{' and '.join(selectors)} each say how many ranks stay: one of them is enough"
    if not selectors and not any(key in given for key in CAPS):
        said = "nothing says how many ranks stay: one of thr, size, sv_ratio, sv_fro, sv_cumulative, max_rank"
        yield SELECTORS[0], said
    if terms and not (selectors and selectors[0] in OWN) and all(math.isfinite(given[key]) for key in terms):
        total = _total(given[key] for key in terms)
        if not 1e-9 <= abs(total) < math.inf:
            yield terms[0], f"{', '.join(terms)}: weights that add up to {total:g}; they are divided by their sum"


def _weights(terms: Mapping[str, float], selectors: Sequence[str]) -> dict[str, float]:
    """The terms' weights as resize_lora normalises them: divided by their sum, which may hold negative ones."""
    if selectors and selectors[0] in OWN:
        return {}
    if not terms:
        return {"fro_ckpt": 1.0}
    total = _total(terms.values())
    return {key: weight / total for key, weight in terms.items() if abs(weight / total) > 1e-6}


def _total(weights: Iterable[float]) -> float:
    try:
        return math.fsum(weights)
    except OverflowError:
        return math.inf


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "size": (lambda value: value > 0, "more than 0 MiB"),
    "sv_ratio": (lambda value: value >= 1, "1 or more: the largest singular value over the least that stays"),
    "sv_fro": (lambda value: 0 < value <= 1, "in (0, 1]: the part of the Frobenius norm that stays"),
    "sv_cumulative": (lambda value: 0 < value <= 1, "in (0, 1]: the part of the sum of singular values that stays"),
    "max_rank": (lambda value: value >= 1 and value == int(value), "a whole number of 1 or more"),
    "max_conv_rank": (lambda value: value >= 1 and value == int(value), "a whole number of 1 or more"),
    "rescale": (lambda value: value > 0, "more than 0"),
}


def scores(recipe: Mapping[str, Any], layer: References) -> np.ndarray:
    """[P], log10: how much each rank matters. log10(c·σ_i) - Σ w_t log10(reference_t), see resize_lora's README.

    `spn_lora` σ_1 · `fro_lora` ‖σ‖ · `spn_ckpt`, `fro_ckpt` norms of W · `subspace` |u_iᵀ W v_i| · `params` O + I·∏k.
    `rescale` c counts on the left alone, as there.
    """
    import numpy as np

    singular = layer.singular.astype(np.float64)
    references: dict[str, Callable[[], Any]] = {
        "spn_lora": lambda: singular[0],
        "fro_lora": lambda: np.sqrt(np.square(singular).sum()),
        "spn_ckpt": lambda: layer.spn_ckpt,
        "fro_ckpt": lambda: layer.fro_ckpt,
        "subspace": lambda: layer.subspace,
        "params": lambda: layer.params,
    }
    with np.errstate(divide="ignore", invalid="ignore"):  # of a base layer of zeros, all is kept
        found = np.log10(singular * recipe.get("rescale", 1.0))
        for term in TERMS:
            if weight := recipe.get(term):
                found = found - weight * np.log10(np.asarray(references[term](), np.float64))
    return np.where(singular > 0, np.where(np.isnan(found), np.inf, found), -np.inf)


def choose(
    recipe: Mapping[str, Any], layers: Mapping[str, References], file_size: Callable[[Mapping[str, int]], int]
) -> dict[str, np.ndarray]:
    """Layer -> the ranks that stay, ascending; a layer that is zero keeps none.

    `file_size` gives the bytes of the whole file for a number of ranks of each layer; `size` is the most that fits.
    """
    found = {name: scores(recipe, layer) for name, layer in layers.items() if not layer.is_zero}
    orders = {name: (-one).argsort(kind="stable") for name, one in found.items()}  # by subspace not the order of σ
    ranked = {name: found[name][order] for name, order in orders.items()}
    most = {name: min(len(ranked[name]), cap(recipe, layers[name])) for name in ranked}
    threshold = recipe.get("thr", -math.inf)
    if "size" in recipe:
        threshold = _threshold(recipe["size"] * MIB, ranked, most, file_size)
    counts = {name: min(most[name], count_of(recipe, layers[name], ranked[name], threshold)) for name in ranked}
    return {name: _sorted(orders[name][: counts.get(name, 0)]) if name in orders else _none() for name in layers}


def cap(recipe: Mapping[str, Any], layer: References) -> float:
    """sd-scripts' new_rank and new_conv_rank: the second is for every convolution, 1×1 too, and the first by default."""
    most = recipe.get("max_rank", math.inf)
    return recipe.get("max_conv_rank", most) if layer.convolution else most


def count_of(recipe: Mapping[str, Any], layer: References, ranked: np.ndarray, threshold: float) -> int:
    """How many ranks pass, the best first."""
    own = next((key for key in OWN if key in recipe), None)
    if own:
        return _OWN[own](layer.singular.astype("f8"), recipe[own])
    return int(((ranked >= threshold) & (ranked > -math.inf)).sum())


def _sv_ratio(singular: np.ndarray, ratio: float) -> int:
    """σ_i >= σ_1 / ratio."""
    return int((singular >= singular[0] / ratio * (1 - 1e-12)).sum())


def _sv_fro(singular: np.ndarray, part: float) -> int:
    """The fewest with ‖σ_1…σ_k‖ >= part · ‖σ‖."""
    return _fewest(singular * singular, part * part)


def _sv_cumulative(singular: np.ndarray, part: float) -> int:
    """The fewest with Σ σ_1…σ_k >= part · Σ σ."""
    return _fewest(singular, part)


def _fewest(values: np.ndarray, part: float) -> int:
    sums = values.cumsum()
    return min(len(sums), int((sums < part * sums[-1] * (1 - 1e-12)).sum()) + 1)


_OWN = {"sv_ratio": _sv_ratio, "sv_fro": _sv_fro, "sv_cumulative": _sv_cumulative}


def _threshold(
    limit: float,
    ranked: Mapping[str, np.ndarray],
    most: Mapping[str, int],
    file_size: Callable[[Mapping[str, int]], int],
) -> float:
    """The least threshold whose file is not larger than `limit` bytes: header, alphas and all that is kept counts.

    resize_lora keeps the rank that crosses the limit, and counts no header. Here the limit holds.
    """
    import numpy as np

    steps = np.unique(np.concatenate([one[: most[name]] for name, one in ranked.items()] or [np.empty(0)]))
    steps = steps[steps > -np.inf]

    def fits(step: int) -> bool:
        counts = {name: int((one[: most[name]] >= steps[step]).sum()) for name, one in ranked.items()}
        return file_size(counts) <= limit

    low, high = 0, len(steps)  # fits from some step on; none of them may
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return float(steps[low]) if low < len(steps) else math.nan  # which nothing reaches, not even infinity


def _sorted(ranks: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.sort(ranks)


def _none() -> np.ndarray:
    import numpy as np

    return np.empty(0, np.int64)


def best_ranks(recipe: Mapping[str, Any], layers: Mapping[str, References]) -> dict[str, int]:
    """Layer -> how many of its ranks have the highest score of all: the least that can stay. Empty if none is trained."""
    best, found = -math.inf, {}
    for name, layer in layers.items():
        if not layer.is_zero and (own := scores(recipe, layer)).max() >= best:
            found = found if own.max() == best else {}
            best = own.max()
            found[name] = int((own == best).sum())
    return found


def nothing_left(recipe: Mapping[str, Any], layers: Mapping[str, References]) -> str:
    """Why a recipe leaves no tensor, for the message to who set the threshold too high."""
    best = max(
        ((float(scores(recipe, layer).max()), name) for name, layer in layers.items() if not layer.is_zero),
        default=None,
    )
    if best is None:
        return "nothing is left of this LoRA: it has no trained layer that the base has"
    what = next((f"{key} = {recipe[key]:g}" for key in SELECTORS if key in recipe), "the recipe")
    return f"{what} keeps nothing of this LoRA: the highest score is {best[0]:.4f} ({best[1]})"
