"""One layer of the base with its adapter: what it adds to the layer's output, and how it goes on and off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from lorabuild.nn.adapters.chance import Chance
from lorabuild.nn.adapters.rebuilt import rebuilt
from lorabuild.nn.adapters.weights import (
    WEIGHTS,
    change_of_outputs,
    decomposed,
    kronecker_parts,
)
from lorabuild.nn.lowrank import as_dtype, compute_dtype, lowrank_linear, single

LOW_RANK = ("locon", "dylora")
DROPOUTS = ("dropout", "rank_dropout", "module_dropout")


@dataclass(eq=False)
class Module:
    """The adapter of a layer. `tensors` are what is trained, by their names in a file without the module's.

    `scale` is alpha / rank. `norm_scale` is what scale_weight_norms has multiplied it by. `dim` is None where an
    algorithm has no rank. `alpha` is that of a file: alpha / rank times the rank, or OFT's constraint.
    """

    name: str
    layer: nn.Module
    algo: str
    tensors: dict[str, Parameter]
    dim: int
    scale: float
    options: Mapping[str, Any]
    chance: Chance
    norm_scale: float = 1.0
    _forward: Any = field(default=None, init=False)

    def attach(self) -> None:
        """Let the layer run with the adapter."""
        self._forward = self.layer.forward
        self.layer.forward = self.forward

    def detach(self) -> None:
        """As it was: a module's forward is its class's own."""
        vars(self.layer).pop("forward", None)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def kernel(self) -> bool:
        return self.weight.dim() > 2

    @property
    def draws(self) -> bool:
        """Whether what it does is drawn anew for each micro-batch."""
        return self.algo == "dylora" or any(self.options.get(key) for key in DROPOUTS)

    @property
    def makes_whole(self) -> bool:
        """Whether a tensor as large as the layer's weight is made of its factors. Of low ranks it is where that is cheaper."""
        return "dora_scale" in self.tensors or self.algo not in (*LOW_RANK, "lokr", "norm", "ia3", "diag-oft", "boft")

    @property
    def constraint(self) -> float:
        return float(self.options.get("constraint") or 0.0)

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name in a file, parameter). A scalar of use_scalar goes into another tensor of the file."""
        for kind, tensor in self.tensors.items():
            yield f"{self.name}.{kind}", tensor

    @property
    def factor(self) -> Tensor | float:
        """What the product is multiplied by, all in all."""
        if "scalar" in self.tensors:
            return self.tensors["scalar"] * (self.scale * self.norm_scale)
        return self.scale * self.norm_scale

    def joined(self, up_to: int | None = None) -> dict[str, Tensor]:
        """The tensors as a file has them: DyLoRA's blocks of ranks one after another.

        With `up_to` only the blocks up to that one, which alone gets a gradient.
        """
        if self.algo != "dylora":
            return dict(self.tensors)
        count = len(self.tensors) // 2
        last = count - 1 if up_to is None else up_to

        def block(kind: str, number: int) -> Tensor:
            tensor = self.tensors[f"{kind}.{number}"]
            return tensor if up_to is None or number == last else tensor.detach()

        down = torch.cat([block("lora_down.weight", n) for n in range(last + 1)])
        up = torch.cat([block("lora_up.weight", n) for n in range(last + 1)], dim=1)
        out, into, *kernel = self.weight.shape
        return {
            "lora_down.weight": down.view(len(down), into, *kernel),
            "lora_up.weight": up.view(out, -1, *[1] * len(kernel)),
        }

    def change(self) -> Tensor:
        """dW [O, I, *k], float32, of an algorithm that adds one, before DoRA: what a file's product comes to."""
        return WEIGHTS[self.algo](self.joined(), self.weight) * self.factor

    # forward

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the adapter's, summed in float32: a sum in bf16 would swallow a young change."""
        drops = self.options if self.chance.drops else {}
        if self.kernel and channels_last(self.weight):  # once, for the base's convolution and for the adapter's
            x = x.to(compute_dtype(x), memory_format=torch.channels_last)
        if (p := drops.get("module_dropout")) and self.chance.happens(p, "module_dropout", self.name):
            return self._forward(x)
        if self.algo == "norm":
            return self._norm(x, drops)
        if self.algo in LOW_RANK and "dora_scale" not in self.tensors:
            return self._low_rank(x, drops)
        if self.algo in WEIGHTS and "dora_scale" not in self.tensors:
            change = self._kronecker(x) if self.algo == "lokr" else self._separate(x)
            return single(self._forward(x)) + self._dropped(single(change), drops)
        plain = single(self._op(x, self.weight))
        change = self._decomposed(x, plain, drops) if "dora_scale" in self.tensors else self._turned(plain)
        out = plain + self._dropped(change, drops)
        return out if self.layer.bias is None else out + self._along_outputs(single(self.layer.bias))

    def product(self, x: Tensor) -> tuple[Tensor, Tensor, float] | None:
        """(down, up, factor) of a linear layer to whose output x Downᵀ Upᵀ · factor is added now, and nothing else.

        None where there is more to it, or where `forward` would not multiply like that.
        """
        drops, tensors = self.options if self.chance.drops else {}, self.tensors
        if self.algo != "locon" or self.kernel or {"dora_scale", "lora_mid.weight"} & tensors.keys():
            return None
        if self.layer.bias is not None or drops.get("dropout"):
            return None
        if (p := drops.get("module_dropout")) and self.chance.happens(p, "module_dropout", self.name):
            return None
        down, up, factor = tensors["lora_down.weight"], tensors["lora_up.weight"], self.factor
        if not lowrank_is_cheaper(self.weight.shape, [down.numel(), up.numel()], self.dim, self._positions(x)):
            return None
        if p := drops.get("rank_dropout"):
            down = down * self._kept((len(down), 1), p, drops)
        return (down, up * factor, 1.0) if isinstance(factor, Tensor) else (down, up, factor)

    def _low_rank(self, x: Tensor, drops: Mapping[str, Any]) -> Tensor:
        factor, tensors, dim = self.factor, self.tensors, self.dim
        if self.algo == "dylora":
            count = len(self.tensors) // 2
            last = count - 1
            if self.chance.drops:
                last = self.chance.number(count, "dylora", self.name)
            tensors = self.joined(last if self.chance.drops else None)
            dim = len(tensors["lora_down.weight"])
            factor *= self.dim / dim  # alpha / rank of what is trained now
        down, up = tensors["lora_down.weight"], tensors["lora_up.weight"]
        if p := drops.get("rank_dropout"):
            down = down * self._kept((len(down), *[1] * (down.dim() - 1)), p, drops)
        if isinstance(factor, Tensor):
            up, factor = up * factor, 1.0
        mid = tensors.get("lora_mid.weight")
        if not lowrank_is_cheaper(
            self.weight.shape, [t.numel() for t in (down, up, mid) if t is not None], dim, self._positions(x)
        ):
            parts = {"lora_down.weight": down, "lora_up.weight": up} | ({} if mid is None else {"lora_mid.weight": mid})
            change = self._separate(x, parts, factor)
            return single(self._forward(x)) + self._dropped(single(change), drops)
        if not self.kernel and not drops.get("dropout"):
            return lowrank_linear(x, self.weight, self.layer.bias, down, up, factor)
        return single(self._forward(x)) + self._dropped(self._bypass(x, down, up, mid, factor), drops)

    def _bypass(self, x: Tensor, down: Tensor, up: Tensor, mid: Tensor | None, factor: float) -> Tensor:
        """The ranks' values, scaled where there are fewest channels, and from them the outputs."""
        dtype = compute_dtype(x)
        x, down, up = as_dtype(x, dtype), as_dtype(down, dtype), as_dtype(up, dtype)
        if not self.kernel:
            return single(functional.linear(functional.linear(x, down) * factor, up))
        if mid is None:
            return single(functional.conv2d(self._op(x, down) * factor, up))
        return single(functional.conv2d(self._op(functional.conv2d(x, down), as_dtype(mid, dtype)) * factor, up))

    def _separate(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, factor: Any = None) -> Tensor:
        """op(x, dW): dW is made in float32 and is rounded by itself, not together with W."""
        tensors = dict(self.tensors) if tensors is None else dict(tensors)
        bias = tensors.pop("diff_b", None)
        factor = self.factor if factor is None else factor
        dtype, weight, make = compute_dtype(x), self.weight, WEIGHTS[self.algo]
        if self.algo == "full":
            change = self._op(x, tensors["diff"])
            return change if bias is None else single(change) + self._along_outputs(bias)
        names = [name for name in tensors if name != "scalar"]
        known, rest = (factor, ()) if not isinstance(factor, Tensor) else (None, (factor,))

        def made(*values: Tensor) -> tuple[Tensor, ...]:
            found = make(dict(zip(names, values, strict=False)), weight)
            return ((found * (values[-1] if known is None else known)).to(dtype),)

        (change,) = rebuilt(made, [*(tensors[name] for name in names), *rest])
        return self._op(x, change)

    def _kronecker(self, x: Tensor) -> Tensor:
        """(w1 ⊗ w2) x = w1 X w2ᵀ for the inputs as a matrix X [c, d]: cheaper than w1 ⊗ w2, whatever the sizes."""
        dtype, factor = compute_dtype(x), self.factor
        with torch.autocast(x.device.type, enabled=False):
            one, two = kronecker_parts(self.tensors, tuple(self.weight.shape[2:]))
            one = as_dtype(one * factor, dtype)
            two = as_dtype(two, dtype)
        x = as_dtype(x, dtype)
        if not self.kernel:
            return functional.linear(torch.matmul(one, x.unflatten(-1, (one.shape[1], -1))), two).flatten(-2)
        grouped = x.unflatten(1, (one.shape[1], -1))  # [B, c, d, H, W]
        mixed = self._op(grouped.flatten(0, 1), two).unflatten(0, grouped.shape[:2])
        return torch.matmul(one, mixed.flatten(2)).unflatten(2, mixed.shape[2:]).flatten(1, 2)

    def _decomposed(self, x: Tensor, plain: Tensor, drops: Mapping[str, Any]) -> Tensor:
        """DoRA: g W x + D x, where W x is `plain`; see `decomposed`. A gain of inputs goes into x."""
        names = [name for name in self.tensors if name not in ("scalar", "dora_scale")]
        dtype, weight, make = compute_dtype(x), self.weight, WEIGHTS[self.algo]
        tensors = {name: self.tensors[name] for name in names}
        if (p := drops.get("rank_dropout")) and self.algo == "locon":
            down = tensors["lora_down.weight"]
            tensors["lora_down.weight"] = down * self._kept((len(down), *[1] * (down.dim() - 1)), p, drops)
        factor = self.factor
        known, rest = (factor, ()) if not isinstance(factor, Tensor) else (None, (factor,))

        def made(magnitude: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            change = make(dict(zip(names, values, strict=False)), weight)
            gain, change = decomposed(magnitude, weight, change * (values[-1] if known is None else known))
            return gain.flatten(), change.to(dtype)

        gain, change = rebuilt(made, [self.tensors["dora_scale"], *tensors.values(), *rest])
        update = single(self._op(x, change))
        if self.tensors["dora_scale"].shape[0] == len(weight):
            return self._along_outputs(gain) * plain + update
        gain = gain.view(-1, 1, 1) if self.kernel else gain
        return single(self._op(single(x) * gain, weight)) + update

    def _turned(self, plain: Tensor) -> Tensor:
        with torch.autocast(plain.device.type, enabled=False):
            last = plain.movedim(1, -1) if self.kernel else plain
            change = change_of_outputs(self.algo, self.tensors, last, self.constraint)
            return change.movedim(-1, 1) if self.kernel else change

    def _norm(self, x: Tensor, drops: Mapping[str, Any]) -> Tensor:
        weight, bias = self.tensors["w_norm"], self.tensors["b_norm"]
        if p := drops.get("rank_dropout"):
            kept = self._kept(tuple(weight.shape), p, drops)
            weight, bias = weight * kept, bias * kept
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(self.layer, nn.GroupNorm):
                change = functional.group_norm(single(x), self.layer.num_groups, weight, bias, self.layer.eps)
            else:
                change = functional.layer_norm(single(x), self.layer.normalized_shape, weight, bias, self.layer.eps)
        return single(self._forward(x)) + change

    # parts of them

    def _op(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own operation with another weight and no bias, in the dtype that the base computes in."""
        dtype, layer = compute_dtype(x), self.layer
        x, weight = as_dtype(x, dtype), as_dtype(weight, dtype)
        if not self.kernel:
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    def _along_outputs(self, vector: Tensor) -> Tensor:
        return vector.view(-1, 1, 1) if self.kernel else vector

    def _positions(self, x: Tensor) -> int:
        """Outputs of a channel: tokens, or pixels of all images."""
        if not self.kernel:
            return x.numel() // x.shape[-1]
        return x.shape[0] * prod(-(-side // step) for side, step in zip(x.shape[2:], self.layer.stride, strict=True))

    def _dropped(self, change: Tensor, drops: Mapping[str, Any]) -> Tensor:
        """The change with `dropout` of its numbers left out and the others enlarged.

        Where there are no ranks, rank_dropout leaves out rows of dW: outputs.
        """
        if (p := drops.get("rank_dropout")) and self.algo not in LOW_RANK:
            change = change * self._along_outputs(self._kept((len(self.weight),), p, drops))
        if p := drops.get("dropout"):
            change = change * self.chance.kept(tuple(change.shape), p, "dropout", self.name, change.device) / (1 - p)
        return change

    def _kept(self, size: tuple[int, ...], p: float, drops: Mapping[str, Any]) -> Tensor:
        kept = self.chance.kept(size, p, "rank_dropout", self.name, self.weight.device)
        return kept / kept.mean().clamp(min=1 / kept.numel()) if drops.get("rank_dropout_scale") else kept


def channels_last(weight: Tensor) -> bool:
    """Whether a convolution's weights lie as tensor cores take them, as on a GPU they do, and not as on a processor."""
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def lowrank_is_cheaper(shape: tuple[int, ...], sizes: list[int], dim: int, positions: int) -> bool:
    """Whether two thin products take fewer multiplications than making dW and one product with it."""
    out, into = shape[0], prod(shape[1:])
    return positions * sum(sizes) <= out * into * (dim + positions)
