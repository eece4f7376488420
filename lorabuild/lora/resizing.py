"""Resize a LoRA, wherever its vectors come from: choose the ranks by the recipe, and lay out the tensors that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.ahead import ahead, cores
from lorabuild.errors import JobError
from lorabuild.header import TensorInfo, byte_size
from lorabuild.lora.layers import LINEAR, module_of, split_key
from lorabuild.lora.lowrank import LowRank, halves, lowrank_tensors
from lorabuild.lora.ranks import MIB, References, best_ranks, choose, nothing_left
from lorabuild.writing import Tensor, verbatim

if TYPE_CHECKING:
    import numpy as np

Entry = tuple[str, str, tuple[int, ...]]  # name, dtype, shape
Ranks = Mapping[str, "np.ndarray"]  # layer -> the ranks of it that stay, ascending
Vectors = Callable[[str, "np.ndarray"], tuple["np.ndarray", "np.ndarray"]]  # layer, ranks -> U transposed, Vh; float32


@dataclass(frozen=True)
class Resize:
    """A LoRA with what a recipe weighs its ranks against. All that it is made of is known by layer name.

    `passed` are the tensors of the file `path` that are in no layer and stay as they are, under these names. `alpha` is
    that of the new file, in `dtype` as its new tensors.
    """

    path: Path
    layers: Mapping[str, LowRank]
    references: Mapping[str, References]
    passed: Mapping[str, TensorInfo]
    alpha: float
    dtype: str
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def choose(self, header_size: Callable[[Sequence[Entry]], int], remedy: str) -> Ranks:
        """What the recipe keeps. `header_size` gives the bytes of a header with these entries: they count for `size`.

        Raises JobError, which names the highest score, or the least size, and the `remedy`, if no tensor is left (but
        for allow_empty); if what stays as it is takes more than `size`; and if it has the name of a tensor to be made.
        """

        def size(counts: Mapping[str, int]) -> int:
            entries = self.entries(counts)
            return header_size(entries) + sum(byte_size(dtype, shape) for _, dtype, shape in entries)

        made = {name for layer in self.layers.values() for name, _, _ in layer.entries(1, self.dtype)}
        if clash := made & self.passed.keys():
            raise JobError(f"{min(clash)}: stands beside a layer that would be written under this name")
        ranks = choose(self.recipe, self.references, size)
        if not any(map(len, ranks.values())):
            self._explain(ranks, size, remedy)
        return ranks

    def _explain(self, ranks: Ranks, size: Callable[[Mapping[str, int]], int], remedy: str) -> None:
        """Why no rank is left, as a JobError, unless a file without them fits and is of use."""
        stays = self.staying(ranks) or self.recipe.get("allow_empty")
        least, limit = size({}), self.recipe.get("size", inf) * MIB
        best = best_ranks(self.recipe, self.references)
        if limit < least or (limit < inf and best and not stays):
            more = f", {_mib(size(best))} with the best rank" if best else ""
            how = f" ({remedy})" if limit >= least else ""
            raise JobError(
                f"size = {self.recipe['size']:g} MiB: the header and what stays as it is take {_mib(least)}{more}{how}"
            )
        if not stays:
            raise JobError(f"{nothing_left(self.recipe, self.references)} ({remedy})")

    def entries(self, counts: Mapping[str, int]) -> list[Entry]:
        """What a file with so many ranks of each layer has in its header."""
        staying = [(key, info.dtype, info.shape) for key, info in self._staying(counts).items()]
        return staying + [
            one for name, layer in self.layers.items() for one in layer.entries(counts.get(name, 0), self.dtype)
        ]

    def staying(self, ranks: Ranks) -> dict[str, TensorInfo]:
        """The tensors that stay as they are: all, but for what means nothing without its layer, as its DoRA scale."""
        return self._staying({name: len(one) for name, one in ranks.items()})

    def _staying(self, counts: Mapping[str, int]) -> dict[str, TensorInfo]:
        gone = {name for name in self.layers if not counts.get(name)}
        return {key: info for key, info in self.passed.items() if not (_is_part(key) and module_of(key) in gone)}

    def tensors(self, ranks: Ranks, vectors: Vectors) -> Iterator[Tensor]:
        """The tensors of the new file, to be written in name order. Those of large layers are made ahead, in threads."""
        yield from verbatim(self.path, self.staying(ranks))
        kept = [self.layers[name] for name in sorted(self.layers) if len(ranks[name])]
        jobs = [partial(self._halves, layer, ranks[layer.name], vectors) for layer in kept]
        made = ahead(ThreadPoolExecutor(cores()), jobs, [layer.numbers(len(ranks[layer.name])) for layer in kept])
        for layer, pair in zip(kept, made, strict=True):
            yield from lowrank_tensors(layer, len(ranks[layer.name]), pair, self.alpha, self.dtype)

    def _halves(self, layer: LowRank, ranks: np.ndarray, vectors: Vectors) -> tuple[np.ndarray, np.ndarray]:
        strengths = self.references[layer.name].singular[ranks] * self.recipe.get("rescale", 1.0)
        return halves(layer, strengths, partial(vectors, layer.name, ranks), self.alpha, self.dtype)

    def notes(self, ranks: Ranks) -> dict[str, int]:
        """In numbers: layers and ranks that stay, layers that were never trained, tensors that stay as they are."""
        return {
            "layers": sum(bool(len(one)) for one in ranks.values()),
            "ranks": sum(map(len, ranks.values())),
            "zero": sum(one.is_zero for one in self.references.values()),
            "passed": len(self.staying(ranks)),
        }


def _mib(size: int) -> str:
    """Bytes as a size that a recipe can ask for: rounded up, and with room for its own digits in the header."""
    return f"{ceil((size + 16) / MIB * 1e4) / 1e4:g} MiB"


def _is_part(key: str) -> bool:
    """Is it a part of a layer, and not a change of the base by itself, as a bias is?"""
    found = split_key(key)
    return found is not None and found[1] not in LINEAR
