"""Put LyCORIS' LoCon adapter on a diffusers SDXL, exactly where kohya's trainer puts it, and take it off again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lorabuild.errors import JobError
from lorabuild.lora.keymap import EXPECTED, adaptable_modules
from lorabuild.nn.base import Base
from lorabuild.nn.lowrank import lowrank_linear
from lorabuild.nn.noise import generator

# kohya's layers of preset "full". LyCORIS' own preset of this name does not fit a diffusers U-Net: it names a layer
# twice, and adds four that have no block.
PRESET = {
    "enable_conv": True,
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "unet_target_name": [],
    # The second class is what some versions of transformers call the first: without it no attention would be trained.
    "text_encoder_target_module": ["CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"],
    "text_encoder_target_name": [],
    "module_algo_map": {},
    "name_algo_map": {},
    "use_fnmatch": False,
    "exclude_name": [],
}


@dataclass(frozen=True)
class Shape:
    """Rank and alpha: of linear layers and 1x1 convolutions, of other convolutions. alpha / rank scales the update."""

    dim: int
    alpha: float
    conv_dim: int
    conv_alpha: float

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Shape:
        """From network_dim, network_alpha and network_args, as kohya's trainer reads them; alpha 0 is the rank."""
        args = recipe.get("network_args") or {}
        dim, alpha = int(recipe["network_dim"]), float(recipe["network_alpha"])
        conv_dim = int(args.get("conv_dim") or dim)
        conv_alpha = float(alpha if args.get("conv_alpha") is None else args["conv_alpha"])
        return cls(dim, alpha or dim, conv_dim, conv_alpha or conv_dim)


@dataclass(frozen=True)
class Adapter:
    """An adapter in place: LyCORIS' modules by kohya's names, in name order; `parts`: "te", "unet" or both."""

    modules: dict[str, Any]
    parts: tuple[str, ...]

    def parameters(self, part: str) -> dict[str, Parameter]:
        """Trained parameters of a part by the names that they have in a file, float32."""
        return {
            f"{name}.{kind}.weight": getattr(module, kind).weight
            for name, module in self.modules.items()
            if _part(name) == part
            for kind in ("lora_down", "lora_up")
        }

    def groups(self, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
        """{"name", "params", "lr"} of what is trained at one rate: "textencoder" (or "textencoder 1" and 2), "unet"."""
        rates, te = {"unet": recipe["unet_lr"]}, recipe["text_encoder_lr"]
        rates |= {f"textencoder {n}": te[n - 1] for n in (1, 2)} if isinstance(te, list) else {"textencoder": te}
        found: dict[str, list[Parameter]] = {}
        for part in self.parts:
            for name, parameter in self.parameters(part).items():
                group = "unet" if part == "unet" else "textencoder"
                if isinstance(te, list) and part == "te":
                    group += f" {name[len('lora_te')]}"
                found.setdefault(group, []).append(parameter)
        return [{"name": name, "params": params, "lr": rates[name]} for name, params in found.items() if rates[name]]

    def counts(self) -> dict[str, int]:
        """Modules of each part: {"unet": 788, "te": 264} where both are trained."""
        return {part: sum(_part(name) == part for name in self.modules) for part in ("unet", "te")}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the parameters of a state, in place."""
        for part in self.parts:
            for name, parameter in self.parameters(part).items():
                parameter.copy_(tensors[name])


@contextmanager
def adapted(base: Base, shape: Shape, seed: int, parts: tuple[str, ...], device: str = "cpu") -> Iterator[Adapter]:
    """`base` with a fresh adapter on its U-Net ("unet" in `parts`) and both text encoders ("te"), within a with block.

    Fresh: up is zero, so that it changes nothing yet; down is uniform in ±1/sqrt(fan-in), each drawn from a stream of
    its own, so that it depends on the seed and the layer's name alone. Afterwards the base is as it was before.
    Raises JobError unless LyCORIS finds exactly the layers that it must find.
    """
    network = _create(base, shape, parts)
    try:
        modules = _named(network, base, parts)
        for name, module in modules.items():
            _draw(module, seed, name)
            module.bypass_forward = _linear(module) if module.module_type == "linear" else _convolution(module)
        with _quiet():
            network.apply_to(None, None, "te" in parts, "unet" in parts)
        network.to(device)
        yield Adapter(modules, parts)
    finally:
        for module in network.loras:
            module.restore()
            vars(module.org_module[0]).pop("forward", None)  # LyCORIS leaves the class's own method behind


def _create(base: Base, shape: Shape, parts: tuple[str, ...]) -> Any:
    from lycoris.kohya import LycorisNetworkKohya as Network

    before = {name: value for name, value in vars(Network).items() if name.isupper()}
    try:
        Network.apply_preset(PRESET)  # sets attributes of the class, for all networks of the process
        with _quiet():
            return Network(
                [base.te1, base.te2] if "te" in parts else None,
                base.unet,
                multiplier=1.0,
                lora_dim=shape.dim,
                alpha=shape.alpha,
                conv_lora_dim=shape.conv_dim,
                conv_alpha=shape.conv_alpha,
                network_module="locon",
                bypass_mode=True,  # W + dW in the base's own bf16 would round most of a young dW away
                warn_on_unmatched=False,
            )
    finally:
        for name, value in before.items():
            setattr(Network, name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without LyCORIS' account of what it does."""
    from lycoris.logging import logger

    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _named(network: Any, base: Base, parts: tuple[str, ...]) -> dict[str, Any]:
    """kohya's name -> module, in name order, once it is sure that it is the whole set, name by name."""
    components = {"unet": base.unet} if "unet" in parts else {}
    components |= {"te1": base.te1, "te2": base.te2} if "te" in parts else {}
    adapters = {id(module.org_module[0]): module for module in network.loras}
    found: dict[str, Any] = {}
    for component, root in components.items():
        modules = dict(root.named_modules())
        layers = adaptable_modules(component, modules)
        named = {name: adapters[id(modules[path])] for name, path in layers.items() if id(modules[path]) in adapters}
        count = sum(id(module) in adapters for module in modules.values())
        if not len(named) == len(layers) == count == EXPECTED[component]:
            raise JobError(
                f"{component}: the adapter found {count} layers, SDXL has {EXPECTED[component]}; the base is not SDXL, or "
                "diffusers, transformers or lycoris-lora is not the version of constraints.txt"
            )
        found |= named
    return dict(sorted(found.items()))


@torch.no_grad()
def _draw(module: Any, seed: int, name: str) -> None:
    torch.nn.init.kaiming_uniform_(module.lora_down.weight, a=5**0.5, generator=generator(seed, "init", name))
    torch.nn.init.zeros_(module.lora_up.weight)


def _linear(module: Any) -> Callable[..., Tensor]:
    """LyCORIS' `bypass_forward` of a linear layer without dropout, in one autograd node."""
    layer, own_scale = module.org_module[0], module.scale
    weight, bias, down, up = layer.weight, layer.bias, module.lora_down.weight, module.lora_up.weight

    def bypass_forward(x: Tensor, scale: float = 1.0) -> Tensor:
        return lowrank_linear(x, weight, bias, down, up, own_scale * scale)

    return bypass_forward


def _convolution(module: Any) -> Callable[..., Tensor]:
    """LyCORIS' `bypass_forward` of a convolution without dropout, scaled where there are fewest channels.

    Theirs asks a kernel library for each call, which on a GPU compiles for each new shape of an image.
    """
    base_forward, own_scale = module.org_module[0].forward, module.scale
    down, up = module.lora_down, module.lora_up

    def bypass_forward(x: Tensor, scale: float = 1.0) -> Tensor:
        base, update = base_forward(x), up(down(x) * (own_scale * scale))
        # In float32, also where both come in half precision: their sum in bf16 would swallow a young update.
        return base.float() + update.float()

    return bypass_forward


def _part(name: str) -> str:
    return "unet" if name.startswith("lora_unet_") else "te"
