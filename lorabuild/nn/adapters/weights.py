"""The change dW that each of LyCORIS' algorithms makes of its tensors, before alpha / rank (LyCORIS, Yeh et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]  # by their names in a file, without the module's


def low_rank(tensors: Tensors, weight: Tensor) -> Tensor:
    """LoRA and LoCon: up [O, R] @ down [R, I·k]; with a core between them (Tucker) down is core x down."""
    up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"]
    if "lora_mid.weight" in tensors:
        down = torch.einsum("rs...,si->ri...", tensors["lora_mid.weight"], down.flatten(1))
    return (up @ down.flatten(1)).view(weight.shape)


def hadamard(tensors: Tensors, weight: Tensor) -> Tensor:
    """LoHa: (w1_a w1_b) ∘ (w2_a w2_b)."""
    one, two = (_product(tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"], tensors.get(f"hada_t{n}")) for n in (1, 2))
    return (one * two).view(weight.shape)


def kronecker(tensors: Tensors, weight: Tensor) -> Tensor:
    """LoKr: w1 ⊗ w2 over outputs and inputs; a kernel is w2's."""
    one, two = kronecker_parts(tensors, weight.shape[2:])
    return torch.einsum("ac,bd...->abcd...", one, two).reshape(weight.shape)


def kronecker_parts(tensors: Tensors, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """w1 [a, c] and w2 [b, d, *k], made of their factors."""
    one, two = tensors.get("lokr_w1"), tensors.get("lokr_w2")
    if one is None:
        one = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    if two is None:
        two = _product(tensors["lokr_w2_a"], tensors["lokr_w2_b"], tensors.get("lokr_t2"))
        two = two.reshape(len(two), -1, *kernel)
    return one, two


def generalised(tensors: Tensors, weight: Tensor) -> Tensor:
    """GLoRA: W a1 a2 + b1 b2 (Chavan et al. 2023, without its biases)."""
    a1, a2 = tensors["a1.weight"].flatten(1), tensors["a2.weight"].flatten(1)
    inner = torch.einsum("oi...,ij->oj...", torch.einsum("oi...,ij->oj...", weight.to(a1.dtype), a1), a2)
    return inner + (tensors["b1.weight"].flatten(1) @ tensors["b2.weight"].flatten(1)).view(weight.shape)


def difference(tensors: Tensors, weight: Tensor) -> Tensor:
    return tensors["diff"]


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a [O, R] @ b [R, J]; with a core [R, R', *k], a [R, O] and b [R', I] it is Σ core·a·b [O, I, *k]."""
    if core is None:
        return a @ b.flatten(1)
    return torch.einsum("rs...,so,ri->io...", core, b, a)


# Algorithms that add a dW; the others turn or scale the base's outputs
WEIGHTS: dict[str, Callable[[Tensors, Tensor], Tensor]] = {
    "locon": low_rank,
    "dylora": low_rank,
    "loha": hadamard,
    "lokr": kronecker,
    "glora": generalised,
    "full": difference,
}


def change_of_outputs(algo: str, tensors: Tensors, y: Tensor, constraint: float) -> Tensor:
    """What the algorithms that only act on outputs add to y [..., O], the layer's outputs without its bias.

    As dW W⁻¹ does not depend on the input, applied to W [I, O] (transposed) it gives dW. All in y's dtype and without
    y + dy - y, so that a small change keeps its digits.
    """
    if algo == "ia3":
        return y * tensors["weight"].flatten()
    turned = _turned(tensors["oft_blocks"], y, constraint)
    if "rescale" in tensors:
        gain = tensors["rescale"].flatten()
        return gain * turned + (gain - 1) * y
    return turned


def _turned(blocks: Tensor, y: Tensor, constraint: float) -> Tensor:
    """(R - 1) y for OFT's block-diagonal R (Qiu et al. 2023), or BOFT's product of butterflies (Liu et al. 2024)."""
    turn = rotation_minus_one(blocks, constraint * y.shape[-1])
    if blocks.dim() == 3:  # LyCORIS applies OFT's blocks transposed, BOFT's as they are
        blocked = y.unflatten(-1, turn.shape[:2])
        return torch.einsum("knm,...kn->...km", turn, blocked).flatten(-2)
    change = torch.zeros_like(y)
    for stage, one in enumerate(turn):
        half = 2**stage * (one.shape[-1] // 2)
        mixed = (y + change).unflatten(-1, (-1, 2, half)).transpose(-2, -1).flatten(-3).unflatten(-1, one.shape[:2])
        mixed = torch.einsum("bij,...bj->...bi", one, mixed)
        change = change + mixed.flatten(-2).unflatten(-1, (-1, half, 2)).transpose(-2, -1).flatten(-3)
    return change


def rotation_minus_one(blocks: Tensor, limit: float) -> Tensor:
    """(1 + Q)(1 - Q)⁻¹ - 1 = 2 Q (1 - Q)⁻¹ with Q = blocks - blocksᵀ (Cayley), of a norm of at most `limit` if that is not 0."""
    skew = limited_skew(blocks, limit)
    one = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return 2 * skew @ torch.linalg.inv(one - skew)


def limited_skew(blocks: Tensor, limit: float) -> Tensor:
    skew = blocks - blocks.transpose(-1, -2)
    if limit > 0:
        norm = skew.norm() + 1e-8
        skew = torch.where(norm > limit, skew * (limit / norm), skew)
    return skew


def column_norms(weight: Tensor, rows: bool) -> Tensor:
    """DoRA's norm of each output's weights [O, 1, …] (`rows`), or of each input's [1, I, …] (Liu et al. 2024, eq. 5)."""
    axes = [axis for axis in range(weight.dim()) if axis != (0 if rows else 1)]
    return weight.square().sum(dim=axes, keepdim=True).sqrt()


def decomposed(magnitude: Tensor, weight: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """DoRA's m (W + dW) / ‖W + dW‖ as (g, D): it is W + g W + D. Float32 or better, whatever the base's dtype is.

    So neither g nor D is a small difference of numbers that were rounded.
    """
    rows = magnitude.shape[0] == weight.shape[0] and magnitude.numel() == weight.shape[0]
    norms = column_norms(weight.to(change.dtype) + change, rows) + torch.finfo(change.dtype).eps
    gain = (magnitude - norms) / norms
    return gain, change * (gain + 1)


def scale_of(options: Mapping[str, Any], algo: str, dim: int, alpha: float, tensors: Tensors) -> float:
    """What the product is multiplied by: alpha / rank, or alpha / √rank with rs_lora (Kalajdzievski 2023).

    A LoKr of two whole factors has no rank and no alpha, as the algorithms that are no products have none.
    """
    if algo in ("full", "ia3", "diag-oft", "boft", "norm") or {"lokr_w1", "lokr_w2"} <= tensors.keys():
        return 1.0
    return alpha / (dim**0.5 if options.get("rs_lora") else dim)
