"""Put a LoRA file's layers on an SDXL for a while, at its exact strength: what a layer adds is added to its output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from lorabuild.errors import JobError
from lorabuild.header import TensorInfo, read_header
from lorabuild.lora.canonical import TEXT_PROJECTION, block_of_module, canonical
from lorabuild.lora.keymap import PREFIX, to_sgm
from lorabuild.lora.layers import Layer, module_of, read_layers, split_key, weight_shape
from lorabuild.nn.base import Base
from lorabuild.nn.factors import Factors, Product, read_factors, scale_of
from lorabuild.nn.lowrank import lowrank_linear

Forward = Callable[[Tensor], Tensor]
NORMS = (nn.LayerNorm, nn.GroupNorm)


@contextmanager
def bare(base: Base) -> Iterator[None]:
    """`base` without the adapter that a training may have put on it; afterwards it is on it again, untouched."""
    taken = [
        (module, vars(module).pop("forward"))
        for network in (base.unet, base.te1, base.te2)
        for module in network.modules()
        if "forward" in vars(module)
    ]
    try:
        yield
    finally:
        for module, forward in taken:
            module.forward = forward


@contextmanager
def applied(base: Base, path: Path | None, device: str = "cpu", without: Collection[str] = ()) -> Iterator[list[str]]:
    """`base` with the LoRA at `path` and nothing else on it, within a with block; None is the base alone. Blocks that it
    is to be `without` are as if the file had none of their layers.

    The base's weights stay as they are: in half precision a small change added to them would be rounded away. Yields
    the names of modules in the file that the base lacks, or that are of a kind unknown here. Raises JobError for
    tensors that do not fit the base.
    """
    with bare(base):
        modules = _modules(base)
        forwards, unknown = _forwards(path, modules, device, without) if path else ({}, [])
        for name, forward in forwards.items():
            modules[name].forward = forward
        try:
            yield unknown
        finally:
            for name in forwards:
                vars(modules[name]).pop("forward", None)


def _modules(base: Base) -> dict[str, nn.Module]:
    """kohya's name -> module, of all layers that a LoRA can change."""
    found = {}
    for path, module in base.unet.named_modules():
        try:
            found[PREFIX["unet"] + to_sgm(path).replace(".", "_")] = module
        except ValueError:
            continue  # holds layers, is none
    for part, network in (("te1", base.te1), ("te2", base.te2)):
        for path, module in network.named_modules():
            name = "text_model." + path.removeprefix("text_model.")
            found[PREFIX[part] + name.replace(".", "_")] = module
    found[TEXT_PROJECTION] = base.te2.text_projection
    return {name: module for name, module in found.items() if isinstance(module, (nn.Linear, nn.Conv2d, *NORMS))}


def _forwards(
    path: Path, modules: Mapping[str, nn.Module], device: str, without: Collection[str]
) -> tuple[dict[str, Forward], list[str]]:
    header = read_header(path)
    layers, rest = read_layers(header.tensors, header.metadata)
    plain = {layer.name: layer for layer in layers}
    others: dict[str, dict[str, TensorInfo]] = {}
    for key, info in rest.items():
        others.setdefault(module_of(key), {})[key] = info
    forwards, unknown = {}, []
    for name in sorted({*plain, *others}):
        if without and block_of_module(name) in without:
            continue
        module = modules.get(canonical(name) or name)
        if module is None:
            unknown.append(name)
        elif name not in others:
            forwards[canonical(name) or name] = _of_layer(path, plain[name], module, device)
        else:
            beside, layer = _tensors(path, others[name]), plain.get(name)
            change = _beside(path, layer, beside, module) if layer else _of_any(name, beside, module)
            if change is None:
                unknown.append(name)
            else:
                forwards[canonical(name) or name] = _changed(module, *change, device)
    return forwards, unknown


def _of_layer(path: Path, layer: Layer, module: nn.Module, device: str) -> Forward:
    """A layer whose change is a product, a Kronecker product or a matrix."""
    shape = _fitting(path, layer, module)
    factors, scale = read_factors(path, layer, "float32"), scale_of(path, layer)
    rows, columns = shape[0], prod(shape[1:])
    if isinstance(factors, Product) and factors.up.shape[1] * (rows + columns) < rows * columns:
        down = torch.from_numpy(factors.down).to(device).reshape(-1, *module.weight.shape[1:])
        return _low_rank(module, down, torch.from_numpy(factors.up).to(device), scale)
    return _changed(module, _dense(factors, scale, module), None, device)


def _fitting(path: Path, layer: Layer, module: nn.Module) -> tuple[int, ...]:
    """The shape that the layer is for; a kernel may be flat in the file."""
    shape, own = weight_shape(layer), module.weight
    if (shape[0], prod(shape[1:])) != (len(own), own[0].numel()):
        raise JobError(f"{path}: {layer.name}: is for a weight {list(shape)}, the base has {list(own.shape)}")
    return shape


def _dense(factors: Factors, scale: float, module: nn.Module) -> Tensor:
    change = np.ascontiguousarray(factors.dense() * np.float32(scale))
    return torch.from_numpy(change).reshape(module.weight.shape)


def _low_rank(module: nn.Module, down: Tensor, up: Tensor, scale: float) -> Forward:
    if isinstance(module, nn.Linear):
        return lambda x: lowrank_linear(x, module.weight, module.bias, down, up, scale)
    own, up = type(module).forward, up[:, :, None, None]

    def forward(x: Tensor) -> Tensor:
        change = F.conv2d(_convolved(module, x, down) * scale, up)
        return own(module, x).float() + change.float()

    return forward


def _convolved(module: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.to(weight.dtype), weight, None, module.stride, module.padding, module.dilation, module.groups)


def _changed(module: nn.Module, weight: Tensor | None, bias: Tensor | None, device: str) -> Forward:
    """The module with these changes, float32, of its weight and bias."""
    weight, bias = (one if one is None else one.to(device, torch.float32) for one in (weight, bias))
    if isinstance(module, NORMS):
        return _changed_norm(module, weight, bias)
    dtype = module.weight.dtype
    # Of its own size, not of the base's: by itself it keeps all its digits.
    small = torch.zeros_like(module.weight) if weight is None else weight.to(dtype)
    new_bias = module.bias if bias is None else bias if module.bias is None else module.bias.float() + bias

    def linear(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        # As in lowrank_linear: the large product is added onto the small one, and the sum is rounded once.
        out = rows.mm(small.t()).addmm_(rows, module.weight.t())
        out = out if new_bias is None else out + new_bias.to(dtype)
        return out.view(*x.shape[:-1], -1)

    def convolution(x: Tensor) -> Tensor:
        found = _convolved(module, x, module.weight).float() + _convolved(module, x, small).float()
        return found if new_bias is None else found + new_bias.float().reshape(-1, 1, 1)

    return linear if isinstance(module, nn.Linear) else convolution


def _changed_norm(module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> Forward:
    new_weight = module.weight.float() + (0 if weight is None else weight)
    new_bias = module.bias.float() + (0 if bias is None else bias)

    def forward(x: Tensor) -> Tensor:
        if isinstance(module, nn.LayerNorm):
            out = F.layer_norm(x.float(), module.normalized_shape, new_weight, new_bias, module.eps)
        else:
            out = F.group_norm(x.float(), module.num_groups, new_weight, new_bias, module.eps)
        return out.to(x.dtype)

    return forward


Change = tuple[Tensor | None, Tensor | None]  # of the weight and of the bias, float32


def _tensors(path: Path, infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:  # some of these are whole numbers
        tensors = {key: file.get_tensor(key).float() for key in infos}
    if broken := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise JobError(f"{path}: {broken[0]}: holds NaN or infinity; the weights are broken")
    return tensors


def _beside(path: Path, layer: Layer, tensors: Mapping[str, Tensor], module: nn.Module) -> Change | None:
    """A layer with a DoRA scale or a change of the bias. None if anything else stands there.

    DoRA (Liu et al. 2024): scale · (W + ΔW) / |W + ΔW|, the norm of each row, or with a scale [1, I, …] of each column.
    """
    found = {key: split_key(key) for key in tensors}
    roles = {one[1]: tensors[key] for key, one in found.items() if one}
    if len(roles) < len(tensors) or roles.keys() - {"dora_scale", "diff_b"}:
        return None
    _fitting(path, layer, module)
    change = _dense(read_factors(path, layer, "float32"), scale_of(path, layer), module)
    if "dora_scale" in roles:
        own, scale = module.weight.detach().float().cpu(), roles["dora_scale"]
        axis = 0 if scale.numel() == scale.shape[0] == len(own) else 1
        size = (own + change).transpose(0, axis).flatten(1).norm(dim=1)
        shape = [-1 if dim == axis else 1 for dim in range(own.ndim)]
        change = (own + change) * (scale.reshape(shape) / size.reshape(shape)) - own
    return change, roles.get("diff_b")


def _of_any(name: str, named: Mapping[str, Tensor], module: nn.Module) -> Change | None:
    """A change by LyCORIS' own formulas: OFT, BOFT, GLoRA; norms, biases and IA3. None for a kind that is none of these."""
    from lycoris.modules import get_module, make_module

    tensors = {key.removeprefix(f"{name}."): tensor for key, tensor in named.items()}
    if "on_input" in tensors:  # LyCORIS cannot read its own files of this kind
        weight, own = tensors["weight"], module.weight.float().cpu()
        axis = [1, -1] if tensors["on_input"] else [-1, 1]
        return own * weight.reshape(*axis, *[1] * (own.ndim - 2)), None
    if isinstance(module, NORMS):
        return tensors.get("w_norm"), tensors.get("b_norm")
    bias = tensors.pop("diff_b", None)
    if not tensors:
        return None, bias
    own = _copied(module)
    kind, parameters = get_module({f"{name}.{key}": one for key, one in tensors.items()}, name)
    adapter = make_module(kind, parameters, name, own) if kind else None
    if adapter is None:
        return None
    adapter.eval()
    merged, new_bias = adapter.get_merged_weight()
    if new_bias is not None and own.bias is not None:
        bias = (new_bias.detach() - own.bias) + (0 if bias is None else bias)
    return merged.detach().reshape(own.weight.shape) - own.weight, bias


def _copied(module: Any) -> nn.Module:
    """The bare layer, float32, on the CPU: what LyCORIS reckons with."""
    if isinstance(module, nn.Linear):
        own: nn.Module = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    else:
        own = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            module.bias is not None,
        )
    own.load_state_dict({name: one.detach().float().cpu() for name, one in module.state_dict().items()})
    return own.requires_grad_(False)
