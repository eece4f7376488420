"""Add up layers of several LoRAs: their factors side by side where they are low-rank, else the sum itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import numpy as np

from lorabuild.lora.lowrank import common_alpha, scalar
from lorabuild.lora.merge import DIFF, LinearSum, MergedLayer
from lorabuild.nn.factors import Dense, Factors, Kronecker, Product, alpha_of, read_factors
from lorabuild.tensors import read_tensor, rounded
from lorabuild.writing import Tensor

# dtype -> below which root mean square numbers lose digits (its least normal number), and near which they overflow.
RANGE = {"F16": (2.0**-14, 2.0**15), "BF16": (2.0**-126, 2.0**127), "F32": (2.0**-126, 2.0**127)}
COARSE = 2e-3  # relative error of a layer: what halves are off by if no number is too small for them is 5e-4


def merged_alpha(layers: Iterable[MergedLayer], dtype: str) -> float:
    """The alpha of the new file: that which most of the parts have that stay low-rank."""
    # The alpha of a LoKr without a rank, of two whole factors, means nothing and may be any number.
    parts = [part for layer in layers if layer.rank for part in layer.parts if part.layer.rank]
    return common_alpha((alpha_of(part.path, part.layer) for part in parts), dtype)


def layer_tensors(layer: MergedLayer, alpha: float, dtype: str, coarse: Callable[[str], None]) -> Iterator[Tensor]:
    """up = [f_1·up_1 …], down = [down_1; …] with f_i = factor_i · R / alpha: a loader's alpha / R · up @ down is the sum.

    Nothing is read before the file is written. `coarse` is told the name of a tensor that its dtype holds badly.
    """
    names = layer.names
    if layer.rank is None:
        yield names.name + DIFF, dtype, names.shape, partial(_difference, layer, dtype, coarse)
        return
    up, down = names.shapes(layer.rank)
    once = lru_cache(maxsize=1)(partial(_halves, layer, layer.rank / alpha if names.alpha else 1.0, dtype))

    def make_up() -> np.ndarray:
        made = once()[0]
        once.cache_clear()  # down, the first by name, is written already
        return made.reshape(up)

    yield names.up, dtype, up, make_up
    yield names.down, dtype, down, lambda: once()[1].reshape(down)
    if names.alpha:
        yield scalar(names.alpha, alpha, dtype)


def linear_tensor(one: LinearSum, dtype: str) -> Tensor:
    """The weighted sum of norms, biases or the like."""

    def make() -> np.ndarray:
        found = sum(part.factor * read_tensor(part.path, part.key, part.info, "float64") for part in one.parts)
        return rounded(np.asarray(found), dtype, one.name)

    return one.name, dtype, one.shape, make


def as_product(factors: Factors) -> Product:
    """The same matrix as up @ down, exactly: (A B) ⊗ (C D) = (A ⊗ C)(B ⊗ D), and a matrix is itself times the identity."""
    if isinstance(factors, Kronecker):
        one, two = as_product(factors.first), as_product(factors.second)
        return Product(np.kron(one.up, two.up), np.kron(one.down, two.down))
    if isinstance(factors, Dense):
        weight = factors.weight
        rows, columns = weight.shape
        return (
            Product(np.eye(rows, dtype=weight.dtype), weight)
            if rows <= columns
            else Product(weight, np.eye(columns, dtype=weight.dtype))
        )
    return factors


def _precision(dtype: str) -> str:
    """What is computed in: for halves float32 is exact enough, and they are rounded from it much faster."""
    return "float64" if dtype == "F32" else "float32"


def _halves(layer: MergedLayer, scale: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """up [O, R] and down [R, J] of the new file, in its dtype."""
    ups, downs = [], []
    for part in layer.parts:
        product = as_product(read_factors(part.path, part.layer, _precision(dtype)))
        up, down = _balanced(product, part.factor * scale, dtype)
        ups.append(rounded(up, dtype, layer.names.up))
        downs.append(rounded(down, dtype, layer.names.down))
    return np.concatenate(ups, axis=1), np.concatenate(downs)


def _balanced(product: Product, factor: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """`factor` · up and down, in the range that `dtype` resolves."""
    # All of the factor goes into up: down stays as it is in its file, bit for bit, and only one half is rounded. Where a
    # rank would then be too small or too large for halves, a power of two moves to the other side: unlike a square root on
    # both, that rounds no normal number. It makes the two sizes equal, for that is farthest from both ends of the range.
    least, most = RANGE[dtype]
    with np.errstate(over="ignore"):
        up, down = product.up * factor, product.down
    (up_size, up_peak), (down_size, down_peak) = _sizes(up, 0), _sizes(down, 1)
    out_of_range = (np.minimum(up_size, down_size) < least) | (np.maximum(up_peak, down_peak) > most)
    moved = out_of_range & (up_size > 0) & (down_size > 0) & np.isfinite(up_size)
    if not moved.any():
        return up, down
    shifts = np.zeros(len(down), int)
    shifts[moved] = np.rint(np.log2(up_size[moved] / down_size[moved]) / 2)
    return np.ldexp(up, -shifts), np.ldexp(down, shifts[:, None])


def _sizes(half: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square and largest magnitude of each rank."""
    return np.sqrt(np.mean(np.square(half, dtype=np.float64), axis=axis)), np.abs(half).max(axis=axis)


def _difference(layer: MergedLayer, dtype: str, coarse: Callable[[str], None]) -> np.ndarray:
    """Σ factor · ΔW, one part after another."""
    out, *rest = layer.names.shape
    found = np.zeros((out, int(np.prod(rest))), _precision(dtype))
    for part in layer.parts:
        with np.errstate(over="ignore", invalid="ignore"):  # `rounded` says so, and of which tensor
            found += part.factor * read_factors(part.path, part.layer, _precision(dtype)).dense()
    name = layer.names.name + DIFF
    made = rounded(found, dtype, name)
    if dtype == "F16" and np.linalg.norm(made.astype("f4") - found) > COARSE * np.linalg.norm(found):
        coarse(name)
    return made.reshape(layer.names.shape)
