"""Read from a recipe what its adapter is like: ranks and alphas by layer, parts that are trained, their rates; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorabuild.errors import JobError
from lorabuild.lora.presets import COMPONENTS, TEXT_PARTS
from lorabuild.names import block_of


@dataclass(frozen=True)
class Shape:
    """What an adapter is like. Rank and alpha: of linear layers and 1x1 convolutions, of other convolutions.

    alpha / rank scales the change. `options` are the other network_args, by their names there.
    """

    dim: int
    alpha: float
    conv_dim: int
    conv_alpha: float
    algo: str = "locon"
    preset: str = "full"
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Shape:
        """From network_dim, network_alpha and network_args, as kohya's trainer reads them; alpha 0 is the rank."""
        args = dict(recipe.get("network_args") or {})
        algo, preset = args.pop("algo", "locon"), args.pop("preset", "full")
        dim, alpha = int(recipe["network_dim"]), float(recipe["network_alpha"])
        own_dim, own_alpha = args.pop("conv_dim", None), args.pop("conv_alpha", None)
        conv_dim = int(own_dim or dim)
        conv_alpha = float(alpha if own_alpha is None else own_alpha)
        return cls(dim, alpha or dim, conv_dim, conv_alpha or conv_dim, algo, preset, args)

    def rank(self, name: str, kernel: bool) -> tuple[int, float]:
        """(rank, alpha) of a layer by its kohya name, `kernel`: a convolution that is not 1x1. Rank 0: no adapter."""
        block, prefix = block_of(name) or "", "conv_" if kernel else ""
        dim, alpha = (self.conv_dim, self.conv_alpha) if kernel else (self.dim, self.alpha)
        dim = int(self.options.get(f"{prefix}block_dims", {}).get(block, dim))
        return dim, float(self.options.get(f"{prefix}block_alphas", {}).get(block, alpha)) or dim


def trained_parts(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts with a learning rate. One with rate 0 is frozen: no modules, no gradients, nothing in the file."""
    parts = tuple(part for part, rate in rates_of(recipe).items() if rate)
    if not parts:
        raise JobError("recipe: unet_lr and text_encoder_lr are both 0: nothing would be trained")
    return parts


def rates_of(recipe: Mapping[str, Any]) -> dict[str, float]:
    """te1, te2 and unet -> learning rate. text_encoder_lr is one number, or one for each encoder."""
    text = recipe.get("text_encoder_lr") or 0.0
    first, second = text if isinstance(text, Sequence) else (text, text)
    return {"te1": first or 0.0, "te2": second or 0.0, "unet": recipe.get("unet_lr") or 0.0}


def expanded(parts: Sequence[str]) -> tuple[str, ...]:
    """ "te" is te1 and te2."""
    return tuple(one for one in COMPONENTS if one in parts or ("te" in parts and one in TEXT_PARTS))


def component_of(name: str) -> str:
    """te1, te2 or unet, of a module or tensor by kohya's name."""
    return name.removeprefix("lora_").partition("_")[0]


def plus_ratio(recipe: Mapping[str, Any], part: str) -> float | None:
    """LoRA+: the rate of up matrices in rates of the rest; None without it."""
    args = recipe.get("network_args") or {}
    own = args.get("loraplus_unet_lr_ratio" if part == "unet" else "loraplus_text_encoder_lr_ratio")
    return own or args.get("loraplus_lr_ratio")
