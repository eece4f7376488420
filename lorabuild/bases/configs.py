"""Describe the networks of a base as diffusers' config.json does: from that file, or SDXL's own with the widths of the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabuild.bases.layout import LATENT_CHANNELS, Part, find_part
from lorabuild.errors import JobError
from lorabuild.header import Header, read_header

# What no shape tells, as SDXL has it. A single file of other widths, such as tests write, says its own in its metadata, as
# JSON under this name.
METADATA = "lorabuild.base"
SHAPELESS = {"head_channels": 64, "norm_groups": 32, "text_head_channels": [64, 64]}

TEXT_LAYERS = {"te1": 12, "te2": 32}
_ACTIVATION = {"te1": "quick_gelu", "te2": "gelu"}
_ARCHITECTURE = {"te1": "CLIPTextModel", "te2": "CLIPTextModelWithProjection"}
SIZES = 6  # numbers of SDXL's size conditioning
LATENT_SCALE = 0.13025  # of SDXL's VAE


def network_config(base: Path, component: str) -> tuple[dict[str, Any], Part]:
    """The config of "vae", "unet", "te1" or "te2", in diffusers' and transformers' words, and where its tensors lie.

    Raises JobError for what is no such component, and OSError.
    """
    if base.is_dir():
        part = find_part(base, component)
        assert part.config is not None
        return _of_json(part.config), part
    header = read_header(base)
    part = find_part(base, component, header)
    return _CONFIGS[component](part, _shapeless(base, header), base, header), part


def _of_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: {getattr(error, 'strerror', None) or 'not JSON'}") from None
    if not isinstance(found, dict):
        raise JobError(f"{path}: not a table")
    return found


def _shapeless(base: Path, header: Header) -> dict[str, Any]:
    said = header.metadata.get(METADATA, "{}")
    try:
        return SHAPELESS | json.loads(said)
    except (ValueError, TypeError):
        raise JobError(f"{base}: {METADATA} in its metadata is no table in JSON") from None


def _unet(part: Part, own: Mapping[str, Any], base: Path, header: Header) -> dict[str, Any]:
    levels = [_width(part, f"input_blocks.{block}.0.in_layers.2.weight") for block in (1, 4, 7)]
    labels = _shape(part, "label_emb.0.0.weight", 2)[1]
    pooled = _shape(find_part(base, "te2", header), "text_projection", 2)[1]
    return {
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (labels - pooled) // SIZES,
        "attention_head_dim": [
            width // own["head_channels"] for width in levels
        ],  # diffusers' name for the number of heads
        "block_out_channels": levels,
        "cross_attention_dim": _shape(part, "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": LATENT_CHANNELS,
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_num_groups": own["norm_groups"],
        "out_channels": LATENT_CHANNELS,
        "projection_class_embeddings_input_dim": labels,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    }


def _vae(part: Part, own: Mapping[str, Any], base: Path, header: Header) -> dict[str, Any]:
    named = "encoder.down.{}.block.0.conv1.weight" if part.sgm else "encoder.down_blocks.{}.resnets.0.conv1.weight"
    _shape(part, "quant_conv.weight", 4)
    if (channels := _width(part, "post_quant_conv.weight")) != LATENT_CHANNELS:
        raise JobError(
            f"{part.place}: a VAE of another model: its latents have {channels} channels, not {LATENT_CHANNELS}"
        )
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [_width(part, named.format(level)) for level in range(4)],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "layers_per_block": 2,
        "norm_num_groups": own["norm_groups"],
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": LATENT_SCALE,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def _te1(part: Part, own: Mapping[str, Any], base: Path, header: Header) -> dict[str, Any]:
    start = "text_model." if any(name.startswith("text_model.") for name in part.tensors) else ""
    words = _shape(part, f"{start}embeddings.token_embedding.weight", 2)
    places = _shape(part, f"{start}embeddings.position_embedding.weight", 2)
    inner = _width(part, f"{start}encoder.layers.0.mlp.fc1.weight")
    return _clip("te1", words, places[0], inner, words[1], own)


def _te2(part: Part, own: Mapping[str, Any], base: Path, header: Header) -> dict[str, Any]:
    words, places = _shape(part, "token_embedding.weight", 2), _shape(part, "positional_embedding", 2)
    inner = _width(part, "transformer.resblocks.0.mlp.c_fc.weight")
    return _clip("te2", words, places[0], inner, _shape(part, "text_projection", 2)[1], own)


def _clip(
    component: str, words: tuple[int, ...], places: int, inner: int, projection: int, own: Mapping[str, Any]
) -> dict[str, Any]:
    """`words`: [size of the vocabulary, width]. Begin and end are the last two words of CLIP's vocabulary."""
    count, width = words
    return {
        "architectures": [_ARCHITECTURE[component]],
        "attention_dropout": 0.0,
        "bos_token_id": count - 2,
        "eos_token_id": count - 1,
        "hidden_act": _ACTIVATION[component],
        "hidden_size": width,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": places,
        "model_type": "clip_text_model",
        "num_attention_heads": width // own["text_head_channels"][component == "te2"],
        "num_hidden_layers": TEXT_LAYERS[component],
        "pad_token_id": 0,
        "projection_dim": projection,
        "vocab_size": count,
    }


_CONFIGS = {"unet": _unet, "vae": _vae, "te1": _te1, "te2": _te2}


def _width(part: Part, name: str) -> int:
    """Outputs of a layer."""
    return _shape(part, name, 0)[0]


def _shape(part: Part, name: str, sides: int) -> tuple[int, ...]:
    """The shape of a tensor, with so many sides, if any number is given. Raises JobError if it is not so, or not there."""
    stored = part.tensors.get(name)
    shape = stored.info.shape if stored else ()
    if not shape or (sides and len(shape) != sides):
        what = f"is of shape {list(shape)}" if stored else "is not there"
        raise JobError(f"{part.place}: not as SDXL has it: {name} {what}")
    return shape
