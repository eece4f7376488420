"""Say by name which layers of SDXL each of LyCORIS' presets adapts, and which norms beside them; no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from lorabuild.lora.keymap import PREFIX
from lorabuild.lora.sdxl_names import text_layers, unet_layers

COMPONENTS = ("te1", "te2", "unet")
TEXT_PARTS = ("te1", "te2")

_CONVOLUTION = re.compile(
    r".*(?:resnets\.\d+\.conv[12]|samplers\.0\.conv)"
)  # 3x3; a shortcut's is 1x1 and counts as linear
_IN_ATTENTIONS = re.compile(r".*attentions\.\d+\..*")
_ATTENTION = re.compile(r".*\.(?:attn[12]|self_attn)\..*")


def _all(path: str) -> bool:
    return True


def _none(path: str) -> bool:
    return False


def _in(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda path: bool(pattern.fullmatch(path))


def _not_in(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda path: not pattern.fullmatch(path)


# Preset -> (which of the U-Net's 788, which of the text encoders' 264), by diffusers' path. LyCORIS' own presets of these
# names do not fit a diffusers U-Net: they name a layer twice, find none, or take layers that are in no block.
PRESETS: dict[str, tuple[Callable[[str], bool], Callable[[str], bool]]] = {
    "full": (_all, _all),
    "full-lin": (_not_in(_CONVOLUTION), _all),
    "attn-mlp": (_in(_IN_ATTENTIONS), _all),
    "attn-only": (_in(_ATTENTION), _in(_ATTENTION)),
    "unet-only": (_all, _none),
    "unet-transformer-only": (_in(_IN_ATTENTIONS), _none),
    "unet-convblock-only": (_not_in(_IN_ATTENTIONS), _none),
}
# What the peer finds on SDXL: a preset that finds another number is broken.
COUNTS = {
    "full": {"unet": 788, "te1": 72, "te2": 192},
    "full-lin": {"unet": 750, "te1": 72, "te2": 192},
    "attn-mlp": {"unet": 722, "te1": 72, "te2": 192},
    "attn-only": {"unet": 560, "te1": 48, "te2": 128},
    "unet-only": {"unet": 788, "te1": 0, "te2": 0},
    "unet-transformer-only": {"unet": 722, "te1": 0, "te2": 0},
    "unet-convblock-only": {"unet": 66, "te1": 0, "te2": 0},
}
WITHOUT_TEXT = tuple(preset for preset, counts in COUNTS.items() if not counts["te1"])


@cache
def preset_layers(preset: str, component: str) -> frozenset[str]:
    """kohya's names of the layers of "unet", "te1" or "te2" that a preset adapts."""
    of_unet, of_text = PRESETS[preset]
    if component == "unet":
        names = {_flat("unet", one.sgm) for one in unet_layers() if one.kind == "block" and of_unet(one.diffusers)}
    else:
        names = {_flat(component, path) for path in text_layers(int(component[-1])) if of_text(path)}
    if len(names) != COUNTS[preset][component]:
        raise AssertionError(f"preset {preset}: {len(names)} layers of {component}, not {COUNTS[preset][component]}")
    return frozenset(names)


@cache
def preset_norms(preset: str) -> frozenset[str]:
    """kohya's names of the norms that `train_norm` adds: those of the ResNets and transformers that the preset is in.

    None of the text encoders, whose norms stand beside attention and MLP; none of "attn-only", nor the U-Net's last one.
    """
    if preset == "attn-only":
        return frozenset()
    whole = {
        "attn-mlp": _in(_IN_ATTENTIONS),
        "unet-transformer-only": _in(_IN_ATTENTIONS),
        "unet-convblock-only": _not_in(_IN_ATTENTIONS),
    }.get(preset, _all)
    norms = (one for one in unet_layers() if one.kind == "norm" and one.diffusers != "conv_norm_out")
    return frozenset(_flat("unet", one.sgm) for one in norms if whole(one.diffusers))


def _flat(component: str, path: str) -> str:
    return PREFIX[component] + path.replace(".", "_")
