"""Name every layer of SDXL that has a weight in all of the world's namings: which of them a loader knows, loaders.py says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from lorabuild.lora.canonical import TEXT_PROJECTION
from lorabuild.lora.keymap import to_sgm

TEXT_LAYERS = {1: 12, 2: 32}  # CLIP ViT-L, OpenCLIP ViT-bigG

# Blocks of the U-Net in diffusers' names: ResNets; those of them, the first ones, that change the number of channels;
# attentions, each behind a ResNet; transformer blocks of each; the resampler.
_BLOCKS = (
    ("down_blocks.0", 2, 0, 0, 0, "downsamplers.0.conv"),
    ("down_blocks.1", 2, 1, 2, 2, "downsamplers.0.conv"),
    ("down_blocks.2", 2, 1, 2, 10, ""),
    ("mid_block", 2, 0, 1, 10, ""),
    ("up_blocks.0", 3, 3, 3, 10, "upsamplers.0.conv"),
    ("up_blocks.1", 3, 3, 3, 2, "upsamplers.0.conv"),
    ("up_blocks.2", 3, 3, 0, 0, ""),
)
_EMBEDDINGS = [f"{which}_embedding.linear_{number}" for which in ("time", "add") for number in (1, 2)]
_OUTSIDE = ("conv_in", *_EMBEDDINGS, "conv_norm_out", "conv_out")
_RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
_TRANSFORMER = (
    *(f"attn{number}.{part}" for number in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
    *(f"norm{number}" for number in (1, 2, 3)),
)
_CLIP = (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class Layer:
    """A layer with a weight. "block" is one of the 788 of a full LoCon; "outside" is in no block; "norm" has no LoRA."""

    sgm: str
    diffusers: str
    kind: Literal["block", "outside", "norm"]


@cache
def unet_layers() -> tuple[Layer, ...]:
    """All layers of SDXL's U-Net that have a weight, 788 of them of kind "block"."""
    return tuple(Layer(to_sgm(path), path, _kind(path)) for path in _unet())


@cache
def text_layers(encoder: int) -> tuple[str, ...]:
    """Paths of the six linear parts of each layer of text encoder 1 or 2, as SDXL's files have them: 72 and 192."""
    return tuple(f"text_model.encoder.layers.{n}.{part}" for n in range(TEXT_LAYERS[encoder]) for part in _CLIP)


def _kind(path: str) -> Literal["block", "outside", "norm"]:
    if "norm" in path.rpartition(".")[2]:
        return "norm"
    return "outside" if path in _OUTSIDE else "block"


def _unet() -> Iterator[str]:
    """diffusers' paths, block by block."""
    yield from _OUTSIDE
    for block, resnets, widened, attentions, depth, resampler in _BLOCKS:
        for index in range(resnets):
            skip = ("conv_shortcut",) if index < widened else ()
            yield from (f"{block}.resnets.{index}.{layer}" for layer in (*_RESNET, *skip))
            if index < attentions:
                blocks = (f"transformer_blocks.{n}.{part}" for n in range(depth) for part in _TRANSFORMER)
                yield from (f"{block}.attentions.{index}.{layer}" for layer in ("norm", "proj_in", *blocks, "proj_out"))
        if resampler:
            yield f"{block}.{resampler}"


@cache
def known_modules(namings: tuple[str, ...]) -> frozenset[str]:
    """Every name that a layer of SDXL has in these NAMINGS."""
    return frozenset(name for naming in namings for name in NAMINGS[naming]())


def _sgm(prefix: str) -> set[str]:
    return {prefix + layer.sgm for layer in unet_layers()}


def _diffusers(prefix: str) -> set[str]:
    return {prefix + layer.diffusers for layer in unet_layers()}


def _processor(prefix: str) -> set[str]:
    """diffusers' paths as they once were in an attention."""
    return {re.sub(r"\.to_out\.0$", ".to_out", path).replace(".to_", ".processor.to_") for path in _diffusers(prefix)}


def _text(encoder: int, prefix: str) -> set[str]:
    return {prefix + path for path in text_layers(encoder)}


def _flat(paths: set[str]) -> set[str]:
    return {path.replace(".", "_") for path in paths}


NAMINGS: dict[str, Callable[[], set[str]]] = {
    "kohya, SGM blocks": lambda: _flat(_sgm("lora_unet_")),
    "kohya, diffusers blocks": lambda: _flat(_diffusers("lora_unet_")),
    "kohya, text": lambda: _flat(_text(1, "lora_te1_") | _text(2, "lora_te2_")),
    "kohya, one text encoder": lambda: _flat(_text(1, "lora_te_")),
    "kohya, text projection 1": lambda: {"lora_te1_text_projection"},
    "kohya, text projection 2": lambda: {TEXT_PROJECTION},
    "lycoris_": lambda: _flat(_diffusers("lycoris_")),
    "SGM paths": lambda: _sgm("diffusion_model."),
    "diffusers paths": lambda: _diffusers("unet."),
    "diffusers processor paths": lambda: _processor("unet."),
    "bare processor paths": lambda: _processor(""),
    "diffusers text paths": lambda: _text(1, "text_encoder.") | _text(2, "text_encoder_2."),
    "ComfyUI text paths": lambda: (
        _text(1, "text_encoders.clip_l.transformer.") | _text(2, "text_encoders.clip_g.transformer.")
    ),
}
