"""Decompose the layers of a LoRA file: singular values of all at once, and vectors of those ranks that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

import numpy as np

from lorabuild.lora.layers import Layer
from lorabuild.nn.decompose import Transforms, transforms
from lorabuild.nn.factors import Product, read_factors, scale_of

BATCH_NUMBERS = 1 << 21  # of a batch of small layers, in float64: stays near the cache


@dataclass(frozen=True)
class Spectrum:
    """Singular values [P], float64, descending, of what a layer adds, alpha / R included; `sign` is that of its scale.

    `transforms` makes the vectors of a product of few ranks; where it is None the layer is decomposed again for them.
    """

    singular: np.ndarray
    sign: float
    transforms: Transforms | None


def decompose_layers(
    path: Path, layers: Iterable[Layer], progress: Callable[[int], None] = lambda done: None
) -> dict[Layer, Spectrum]:
    """The spectra of `layers` of the file at `path`. `progress` is told how many are done. Raises as `decompose_batch`."""
    found: dict[Layer, Spectrum] = {}
    for batch in batches(layers):
        found |= decompose_batch(path, batch)
        progress(len(found))
    return found


def vectors(
    path: Path, layer: Layer, spectrum: Spectrum, ranks: np.ndarray, precision: str = "float64"
) -> tuple[np.ndarray, np.ndarray]:
    """U [O, k] and Vh [k, J] of the chosen ranks: U diag(S) Vh is what they add to the base's weight.

    Computed in `precision`; a layer that is decomposed again is in float64 whatever that is.
    """
    if spectrum.transforms is not None and isinstance(factors := read_factors(path, layer, precision), Product):
        left, right = spectrum.transforms.left[:, ranks] * spectrum.sign, spectrum.transforms.right[ranks]
        return factors.up @ left.astype(precision), right.astype(precision) @ factors.down
    u, _, vh = read_factors(path, layer).svd()
    return u[:, ranks] * spectrum.sign, vh[ranks]


def batches(layers: Iterable[Layer]) -> Iterator[tuple[Layer, ...]]:
    """Layers with tensors of equal shapes, the largest first: a long one at the end would be waited for alone."""

    def size(layer: Layer) -> int:
        return sum(prod(info.shape) for info in layer.infos.values())

    def kind(layer: Layer) -> tuple:
        return -size(layer), layer.flavour, sorted((role, info.shape) for role, info in layer.infos.items())

    for (negative, *_), group in groupby(sorted(layers, key=kind), key=kind):
        alike, most = tuple(group), max(1, BATCH_NUMBERS // max(1, -negative))
        yield from (alike[start : start + most] for start in range(0, len(alike), most))


def decompose_batch(path: Path, layers: Sequence[Layer]) -> dict[Layer, Spectrum]:
    """The spectra of a batch of layers of one shape. Raises JobError for weights that are no finite numbers."""
    factors = [read_factors(path, layer) for layer in layers]
    scales = [scale_of(path, layer) for layer in layers]
    products = [one for one in factors if isinstance(one, Product)]
    if len(products) < len(factors):
        parts: Sequence[Transforms | None] = [None] * len(factors)
    else:
        parts = transforms(np.stack([one.up for one in products]), np.stack([one.down for one in products]))
    found = {}
    for layer, factor, scale, part in zip(layers, factors, scales, parts, strict=True):
        singular = part.singular if part else factor.svd()[1]
        found[layer] = Spectrum(singular * abs(scale), -1.0 if scale < 0 else 1.0, part)
    return found
