"""Start an adapter's tensors: fresh from random streams of their own, or from the tensors of a LoRA file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lorabuild.errors import JobError
from lorabuild.lora.adapter_tensors import Start
from lorabuild.lora.canonical import canonical
from lorabuild.lora.layers import split_key
from lorabuild.nn.adapters.weights import WEIGHTS, column_norms
from lorabuild.nn.noise import generator

FIRST = "lora_down.weight"


def drawn(seed: int, name: str, kind: str, start: Start, weight: Tensor) -> Tensor:
    """The tensor `kind` of a fresh adapter of the layer `name`, float32 on the CPU; depends on seed and names alone."""
    if weight.is_meta:  # laid out alone
        return torch.empty(start.shape, device="meta")
    tensor = torch.empty(start.shape)
    if start.how == "norms":
        return column_norms(weight.detach().to("cpu", torch.float32), start.shape[0] == len(weight))
    if start.how in ("zeros", "ones"):
        return tensor.fill_(start.how == "ones")
    stream = generator(seed, "init", name) if kind == FIRST else generator(seed, "init", name, kind)
    if start.how == "kaiming":
        return nn.init.kaiming_uniform_(tensor, a=5**0.5, generator=stream)
    return tensor.normal_(std=1.0 if start.how == "normal" else 0.1, generator=stream)


class FromFile(NamedTuple):
    """A layer's adapter as a LoRA file has it."""

    algo: str
    tensors: dict[str, Tensor]  # without the alpha
    dim: int
    alpha: float


# What only an algorithm's files have. LoCon's are DyLoRA's, too; OFT's and BOFT's differ in dimensions.
_SIGNS = {
    "lora_up.weight": "locon", "hada_w1_a": "loha", "lokr_w1": "lokr", "lokr_w1_a": "lokr", "diff": "full",
    "on_input": "ia3", "oft_blocks": "diag-oft", "a1.weight": "glora", "w_norm": "norm",
}  # fmt: skip
# The tensor whose rows are the ranks
_RANKED = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2.weight")
_ROLES = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
_OTHERS = ("on_input", "weight", "oft_blocks", "rescale", "a1.weight", "a2.weight", "b1.weight", "b2.weight")


def layers_of_file(tensors: Mapping[str, Tensor]) -> dict[str, FromFile]:
    """kohya's name of each layer -> its adapter: ranks and alphas are the file's. Names may be of any trainer.

    Raises JobError for a tensor that belongs to no layer of SDXL, or to no algorithm that can be trained here.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, kind = _split(key)
        name = canonical(module) if kind else None
        if name is None:
            raise JobError(f"init: {key} is no tensor of an adapter on a layer of SDXL: training cannot go on from it")
        found.setdefault(name, {})[kind] = tensor
    return {name: _layer(name, own) for name, own in sorted(found.items())}


def check_fits(name: str, one: FromFile, layer: nn.Module) -> None:
    """Raise JobError unless the tensors are those of an adapter of this layer; nothing is computed."""
    meta = {kind: tensor.to("meta") for kind, tensor in one.tensors.items()}
    weight = layer.weight.to("meta")
    out = weight.shape[0]
    try:
        if one.algo in WEIGHTS:
            fits = WEIGHTS[one.algo](meta, weight).shape == weight.shape
        elif one.algo == "norm":
            fits = all(tensor.shape == weight.shape for tensor in meta.values())
        elif one.algo == "ia3":
            fits = meta["weight"].numel() == out
        else:
            fits = meta["oft_blocks"].shape[-3] * meta["oft_blocks"].shape[-1] == out
    except (RuntimeError, KeyError):
        fits = False
    if not fits:
        shapes = ", ".join(f"{kind} {list(tensor.shape)}" for kind, tensor in one.tensors.items())
        raise JobError(f"init: {name}: {shapes} do not fit the base's weight {list(weight.shape)}")


def dylora_blocks(tensors: Mapping[str, Tensor], block: int) -> dict[str, Tensor]:
    """up and down of a LoCon, cut into DyLoRA's blocks of ranks."""
    down, up = tensors["lora_down.weight"].flatten(1), tensors["lora_up.weight"].flatten(1)
    downs = {f"lora_down.weight.{n}": part for n, part in enumerate(down.split(block))}
    return downs | {f"lora_up.weight.{n}": part for n, part in enumerate(up.split(block, dim=1))}


def _split(key: str) -> tuple[str, str]:
    """(module, name of the tensor as kohya has it); the name is empty where it is none of an adapter."""
    if found := split_key(key):
        return found[0], _ROLES.get(found[1], found[1])
    for kind in sorted(_OTHERS, key=len, reverse=True):
        if key.endswith(f".{kind}"):
            return key.removesuffix(f".{kind}"), kind
    return key, ""


def _layer(name: str, tensors: dict[str, Tensor]) -> FromFile:
    algo = next((algo for sign, algo in _SIGNS.items() if sign in tensors), None)
    if algo is None:
        raise JobError(f"init: {name} has {', '.join(sorted(tensors))} alone: training cannot go on from that")
    if algo == "diag-oft" and tensors["oft_blocks"].dim() == 4:
        algo = "boft"
    own: dict[str, Any] = {kind: tensor.float() for kind, tensor in tensors.items()}
    alpha, on_input = own.pop("alpha", None), own.pop("on_input", None)
    if on_input is not None and on_input.item():
        raise JobError(f"init: {name}: its ia3 scales inputs, which is not trained here")
    dim = next((len(own[kind]) for kind in _RANKED if kind in own), 1)
    oft = algo in ("diag-oft", "boft")
    return FromFile(algo, own, dim, (0.0 if oft else float(dim)) if alpha is None else float(alpha))
