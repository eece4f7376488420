"""Keep, scale or drop the blocks of a LoRA file by copying byte ranges: only tensors that are scaled are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorabuild.errors import JobError
from lorabuild.header import TensorInfo, byte_size
from lorabuild.lora.canonical import block_of_module
from lorabuild.lora.layers import LINEAR, module_of, split_key
from lorabuild.names import BLOCKS
from lorabuild.tensors import FLOATS, scaled_tensor
from lorabuild.writing import FileRange, Tensor

if TYPE_CHECKING:
    import numpy as np

# Of each flavour the one factor in which what a layer adds is linear: scaling all of them, as chop_blocks does, would
# raise the weight to the third power, or the fifth. Of LoKr it is w1, or w1's first factor where it is a product.
SCALED = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a", *LINEAR)
PIECE = 1 << 20  # numbers that are scaled at a time: 4 MiB in float32


@dataclass(frozen=True)
class Blocks:
    """Which block each tensor of a file is in, None for those in none; and how many there are of each."""

    of: Mapping[str, str | None]
    counts: Mapping[str | None, int]

    @staticmethod
    def read(tensors: Mapping[str, TensorInfo]) -> Blocks:
        of = {key: block_of_module(module_of(key)) for key in tensors}
        return Blocks(of, Counter(of.values()))

    @property
    def present(self) -> list[str]:
        """The blocks that the file has, in the order of the network."""
        return [block for block in BLOCKS if self.counts.get(block)]

    def __str__(self) -> str:
        return f"it has {', '.join(self.present)}" if self.present else "it has no blocks"


def chopped(
    path: Path, tensors: Mapping[str, TensorInfo], blocks: Blocks, weights: Mapping[str, float]
) -> Iterator[Tensor]:
    """The tensors of a file without those of blocks of weight 0; a weight w scales what a block adds to the base by w.

    Tensors in no block, and in blocks that `weights` does not name, stay as they are. Raises JobError for a tensor that
    cannot be scaled.
    """
    for key, info in tensors.items():
        weight = weights.get(blocks.of[key] or "", 1.0)
        if weight == 0:
            continue
        if weight == 1 or not _is_scaled(key, info, tensors, weight):
            yield key, info.dtype, info.shape, FileRange(path, info.start, info.stop)
        else:
            yield key, info.dtype, info.shape, partial(_scaled, path, key, info, weight)


def chop_warnings(
    tensors: Mapping[str, TensorInfo],
    blocks: Blocks,
    weights: Mapping[str, float],
    named: Iterable[str],
    idle: Iterable[str],
) -> Iterator[str]:
    """What a user should know of a chop: blocks that were `named` and are not there, `idle` weights of blocks that are
    dropped, and what a weight does not reach.
    """
    for block in idle:
        yield f"{block} has a weight, but is dropped: keep it, too, if it is to stay"
    for block in named:
        if not blocks.counts.get(block):
            yield f"{block} is kept, but has no tensors here: {blocks}"
    if layers := _dora_layers(tensors, blocks, weights):
        yield f"{layers} DoRA layers: their low-rank part is scaled, their magnitude stays as it is"


def _dora_layers(tensors: Mapping[str, TensorInfo], blocks: Blocks, weights: Mapping[str, float]) -> int:
    """How many scaled layers have a magnitude of their own (DoRA): it stays, for its half depends on the base."""
    return sum(
        weights.get(blocks.of[key] or "", 1.0) not in (0, 1) and (split_key(key) or ("", ""))[1] == "dora_scale"
        for key in tensors
    )


def _is_scaled(key: str, info: TensorInfo, tensors: Mapping[str, TensorInfo], weight: float) -> bool:
    found = split_key(key)
    if found is None:
        raise JobError(f"{key}: cannot be scaled by {weight:g}: of no flavour known here; 0 or 1 can be its weight")
    module, role = found
    if role not in SCALED or (role == "lokr_w1_a" and f"{module}.lokr_w1" in tensors):
        return False
    if info.dtype not in FLOATS:
        raise JobError(f"{key}: cannot be scaled by {weight:g}: has dtype {info.dtype}; 0 or 1 can be its weight")
    return True


def _scaled(path: Path, key: str, info: TensorInfo, weight: float) -> Iterator[np.ndarray]:
    """The tensor times `weight`, PIECE numbers at a time. Raises JobError where a product does not fit its dtype."""
    for start in range(info.start, info.stop, size := byte_size(info.dtype, (PIECE,))):
        stop = min(start + size, info.stop)
        part = TensorInfo(info.dtype, ((stop - start) * PIECE // size,), start, stop)
        try:
            yield scaled_tensor(path, key, part, weight)
        except JobError as error:
            raise JobError(f"{error}, or scale by less than {abs(weight):g}") from None
