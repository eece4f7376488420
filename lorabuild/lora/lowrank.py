"""Lay out the low-rank layers of a file: shapes, one alpha for all, and the tensors of the ranks that stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod
from typing import TYPE_CHECKING

from lorabuild.lora.layers import Layer
from lorabuild.lora.ranks import References
from lorabuild.tensors import nearest, rounded
from lorabuild.writing import Tensor

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class LowRank:
    """A layer to be written: the names of its tensors, and the shape [O, I, *k] of the weight that it changes.

    `alpha` is None where its kind of file has none: then its scale is 1.
    """

    name: str
    up: str
    down: str
    alpha: str | None
    shape: tuple[int, ...]

    @staticmethod
    def of(layer: Layer, shape: tuple[int, ...]) -> LowRank:
        """With the names that `layer` has in its file, or kohya's for what it had not."""
        alpha = layer.name + layer.suffix("alpha") if layer.has_alphas else None
        return LowRank(layer.name, layer.name + layer.suffix("up"), layer.name + layer.suffix("down"), alpha, shape)

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of up [O, k, *1] and down [k, I, *k]."""
        out, *rest = self.shape
        return (out, rank, *[1] * (len(rest) - 1)), (rank, *rest)

    def numbers(self, rank: int) -> int:
        """How many its up and down hold with `rank` ranks."""
        return rank * (self.shape[0] + prod(self.shape[1:]))

    def references(
        self, singular: np.ndarray, fro_ckpt: float, spn_ckpt: float | None, subspace: np.ndarray | None = None
    ) -> References:
        """What its ranks are weighed against."""
        out, *rest = self.shape
        return References(singular, fro_ckpt, spn_ckpt, out + prod(rest), len(rest) > 1, subspace)

    def entries(self, rank: int, dtype: str) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of its tensors with `rank` ranks; none without a rank."""
        if not rank:
            return []
        up, down = self.shapes(rank)
        alpha = [(self.alpha, dtype, ())] if self.alpha else []
        return [(self.up, dtype, up), (self.down, dtype, down), *alpha]


def common_alpha(alphas: Iterable[float], dtype: str) -> float:
    """The alpha of a file: that which most layers have, the least of several, as `dtype` has it; 1 if none is positive.

    One for all: diffusers takes one alpha for all attention layers. What it cannot say goes into the weights.
    """
    counts = Counter(alpha for alpha in alphas if 0 < alpha < inf)
    most = min(counts, key=lambda alpha: (-counts[alpha], alpha), default=1.0)
    alpha = nearest(most, dtype)
    return alpha if 0 < alpha < inf else 1.0


def halves(
    layer: LowRank,
    strengths: np.ndarray,
    vectors: Callable[[], tuple[np.ndarray, np.ndarray]],
    alpha: float,
    dtype: str,
) -> tuple[np.ndarray, np.ndarray]:
    """up = U √(c·s), down = √(c·s) Vh with c = k / alpha, so that a loader's alpha / k · up @ down is U diag(s) Vh.

    `strengths` s [k]; `vectors` gives U transposed [k, O] and Vh [k, I·∏k], float32, to be overwritten. Each half gets the root, so that
    neither leaves the range that half precision resolves well. Both are rounded to `dtype`: up [O, k], down [k, I·∏k].
    """
    import numpy as np

    roots = ((strengths * (len(strengths) / alpha if layer.alpha else 1.0)) ** 0.5).astype("f4")[:, None]
    transposed, vh = vectors()
    for vectors_of_ranks in (transposed, vh):
        np.multiply(vectors_of_ranks, roots, out=vectors_of_ranks)
    return np.ascontiguousarray(rounded(transposed, dtype, layer.up).T), rounded(vh, dtype, layer.down)


def lowrank_tensors(
    layer: LowRank, rank: int, made: Callable[[], tuple[np.ndarray, np.ndarray]], alpha: float, dtype: str
) -> Iterator[Tensor]:
    """The tensors of a layer; `made` gives what `halves` does, and is called once, when the file is written."""
    up, down = layer.shapes(rank)
    once = lru_cache(maxsize=1)(made)

    def make_up() -> np.ndarray:
        found = once()[0]
        once.cache_clear()  # down, the first by name, is written already
        return found

    yield layer.up, dtype, up, make_up
    yield layer.down, dtype, down, lambda: once()[1]
    if layer.alpha:
        yield scalar(layer.alpha, alpha, dtype)


def scalar(name: str, value: float, dtype: str = "F32") -> Tensor:
    """A tensor of one number, without dimensions."""
    return name, dtype, (), _number(value, dtype)


@lru_cache(maxsize=8)
def _number(value: float, dtype: str) -> bytes:
    import numpy as np

    return rounded(np.array(value, np.float64), dtype, "alpha").tobytes()
