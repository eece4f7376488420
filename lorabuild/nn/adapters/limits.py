"""scale_weight_norms: keep what each layer adds to its weight below a norm, by LyCORIS' rule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lorabuild.nn.adapters.module import Module
from lorabuild.nn.adapters.weights import kronecker_parts


class Norms(NamedTuple):
    """Layers that were scaled down, and mean and largest norm of all afterwards: sd-scripts' max_norm/… in a log."""

    scaled: int
    mean: float
    largest: float


@torch.no_grad()
def limit_norms(modules: Iterable[Module], limit: float) -> Norms:
    """Scale what is larger than `limit` down to exactly that; in place.

    The norm is ‖dW‖_F with alpha / rank, of OFT that of its blocks. LyCORIS multiplies a factor of its own (`norm_scale`;
    with use_scalar that parameter), of LoKr every factor alike, of OFT the blocks; full, ia3, glora, dylora and norms have
    no limit. Its mean and maximum are 0 unless a layer was scaled; these are always true.
    """
    measured = [(module, norm) for module in modules if (norm := _norm(module)) is not None]
    if not measured:
        return Norms(0, 0.0, 0.0)
    norms = torch.stack([norm.double() for _, norm in measured]).tolist()  # one wait for the device, not one a layer
    scaled = 0
    for (module, _), norm in zip(measured, norms, strict=True):
        if norm > limit:
            _scale(module, limit / norm)
            scaled += 1
    after = [min(norm, limit) for norm in norms]
    return Norms(scaled, sum(after) / len(after), max(after))


def _norm(module: Module) -> Tensor | None:
    tensors, factor = module.tensors, module.factor
    if module.algo in ("diag-oft", "boft"):
        return tensors["oft_blocks"].norm()
    if module.algo == "locon" and "lora_mid.weight" not in tensors:
        # ‖U D‖² = tr(UᵀU · D Dᵀ), in float64 as squares lose half of the digits
        up, down = (tensors[f"lora_{kind}.weight"].flatten(1).double() for kind in ("up", "down"))
        return ((up.t() @ up) * (down @ down.t())).sum().clamp(min=0).sqrt() * abs(factor)
    if module.algo == "lokr":
        one, two = kronecker_parts(tensors, tuple(module.weight.shape[2:]))
        return one.double().norm() * two.double().norm() * abs(factor)
    if module.algo in ("locon", "loha"):
        return module.change().double().norm()
    return None


def _scale(module: Module, ratio: float) -> None:
    if module.algo == "lokr":
        factors = [tensor for name, tensor in module.tensors.items() if name.startswith("lokr_")]
        for tensor in factors:
            tensor *= ratio ** (1 / len(factors))
    elif module.algo in ("diag-oft", "boft"):
        module.tensors["oft_blocks"] *= ratio
    elif "scalar" in module.tensors:
        module.tensors["scalar"] *= ratio
    else:
        module.norm_scale *= ratio
