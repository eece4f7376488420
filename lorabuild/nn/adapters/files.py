"""The tensors of a trained layer as the world's loaders read them, with the file's one alpha."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lorabuild.nn.adapters.module import Module
from lorabuild.nn.adapters.weights import limited_skew

# What takes up alpha / rank: a set of factors whose product, or whose sum of products of two, is dW.
_FACTORS = {
    "locon": ("lora_down.weight", "lora_up.weight"),
    "dylora": ("lora_down.weight", "lora_up.weight"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
}
# The first factor of each product: what use_scalar multiplies.
_SCALED = {
    "locon": ("lora_up.weight",),
    "loha": ("hada_w1_a",),
    "lokr": ("lokr_w1", "lokr_w1_a"),
    "glora": ("a2.weight", "b2.weight"),
}


@torch.no_grad()
def file_tensors(module: Module, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor): with `alpha`, the file's, a loader makes of them what the layer was trained with.

    Names are LyCORIS'. Its own alpha is the file's for all algorithms but OFT, where it is the constraint, and those that
    have none.
    """
    tensors = {kind: tensor.detach() for kind, tensor in module.joined().items()}
    scalar = tensors.pop("scalar", None)
    if scalar is not None:
        for kind in _SCALED[module.algo]:
            if kind in tensors:
                tensors[kind] = tensors[kind] * scalar
    if module.algo in _FACTORS:
        tensors = _folded(module, tensors, alpha)
        yield f"{module.name}.alpha", torch.tensor(alpha)
    elif module.algo in ("diag-oft", "boft"):
        limit = module.constraint * len(module.weight)
        tensors["oft_blocks"] = _limited(tensors["oft_blocks"], limit)
        yield f"{module.name}.alpha", torch.tensor(module.constraint)
    elif module.algo == "ia3":
        yield f"{module.name}.on_input", torch.tensor(0.0)
    for kind, tensor in tensors.items():
        yield f"{module.name}.{kind}", tensor


def _folded(module: Module, tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """A loader multiplies by alpha / rank, or by 1 where there is no rank: the rest goes into all factors alike, so that
    none leaves the range that half precision resolves well."""
    whole = {"lokr_w1", "lokr_w2"} <= tensors.keys()
    rest = module.scale * module.norm_scale * (1.0 if whole else module.dim / alpha)
    if rest == 1.0:
        return tensors
    kinds = [kind for kind in _FACTORS[module.algo] if kind in tensors]
    root = rest ** (1 / (2 if module.algo == "glora" else len(kinds)))
    return {kind: tensor * root if kind in kinds else tensor for kind, tensor in tensors.items()}


def _limited(blocks: Tensor, limit: float) -> Tensor:
    """The blocks with the constraint done, so that a loader that knows of none turns by the same angle."""
    if not limit or blocks.is_meta:  # on the meta device there are no numbers
        return blocks
    norm = (blocks - blocks.transpose(-1, -2)).norm()
    return blocks * (limited_skew(blocks, limit).norm() / norm) if norm > limit else blocks
