"""Reckon the shapes of SDXL's U-Net and text encoders from their configurations, without making them; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Shape = tuple[int, ...]

# What SDXL's U-Net is, in the words of its config.json; its widths are free. What a configuration does not say is so, too.
UNET = {
    "addition_embed_type": "text_time",
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "attention_type": "default",
}
SAID = (
    "down_block_types",
    "transformer_layers_per_block",
    "use_linear_projection",
    "addition_embed_type",
)  # not default
NUMBERS = ("block_out_channels", "cross_attention_dim", "projection_class_embeddings_input_dim")
# What changes no shape.
SHAPELESS = (
    "_class_name", "_diffusers_version", "_name_or_path", "sample_size", "center_input_sample", "flip_sin_to_cos", "freq_shift",
    "downsample_padding", "mid_block_scale_factor", "dropout", "act_fn", "norm_eps", "upcast_attention", "resnet_skip_time_act",
    "resnet_out_scale_factor", "timestep_post_act", "addition_time_embed_dim", "attention_head_dim", "norm_num_groups",
    "num_attention_heads", "in_channels", "out_channels",
)  # fmt: skip
CLIP = ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers")
TIME = 4  # width of the time embedding, in widths of the first level
CHANNELS = 4  # of latents, where a configuration does not say

_RESNET = re.compile(r"(down|up)_blocks\.(\d)\.resnets\.(\d)\.(.+)|mid_block\.resnets\.\d\.(.+)")
_LEVEL = re.compile(r"(?:(down|up)_blocks\.(\d)|mid_block)\.(?:attentions\.\d|downsamplers\.0|upsamplers\.0)\.(.+)")


def unet_shapes(config: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Shape] | None:
    """Parameter -> shape of a U-Net of SDXL's structure, None for a configuration of another one.

    `paths`: diffusers' path of each layer that has a weight.
    """
    if not _is_sdxl(config):
        return None
    found: dict[str, Shape] = {}
    for path in paths:
        weight = _weight(path, config)
        found[f"{path}.weight"] = weight
        if not re.search(r"\.(?:attn[12]\.to_[qkv])$", path):
            found[f"{path}.bias"] = weight[:1]
    return found


def clip_shapes(component: str, config: Mapping[str, Any]) -> dict[str, Shape] | None:
    """Parameter -> shape of the text encoder "te1" or "te2", without `text_model.`; None where its configuration says too little."""
    if not all(isinstance(config.get(key), int) for key in (*CLIP, "num_attention_heads")):
        return None
    words, width, inner, places, layers = (config[key] for key in CLIP)
    if width % config["num_attention_heads"]:
        return None
    found: dict[str, Shape] = {
        "embeddings.token_embedding.weight": (words, width),
        "embeddings.position_embedding.weight": (places, width),
    }
    for number in range(layers):
        for name, shape in _clip_layer(width, inner):
            found[f"encoder.layers.{number}.{name}.weight"] = shape
            found[f"encoder.layers.{number}.{name}.bias"] = shape[:1]
    found |= {"final_layer_norm.weight": (width,), "final_layer_norm.bias": (width,)}
    if component == "te2":
        if not isinstance(config.get("projection_dim"), int):
            return None
        found["text_projection.weight"] = (config["projection_dim"], width)
    return found


def _clip_layer(width: int, inner: int) -> Iterator[tuple[str, Shape]]:
    yield from ((f"self_attn.{one}_proj", (width, width)) for one in ("q", "k", "v", "out"))
    yield from ((f"layer_norm{number}", (width,)) for number in (1, 2))
    yield "mlp.fc1", (inner, width)
    yield "mlp.fc2", (width, inner)


def _is_sdxl(config: Mapping[str, Any]) -> bool:
    known = {*UNET, *NUMBERS, *SHAPELESS}
    if any(value not in (None, False) for key, value in config.items() if key not in known):
        return False
    if any(key not in config for key in (*SAID, *NUMBERS)):
        return False
    if any(config.get(key, value) != value for key, value in UNET.items()):
        return False
    widths, heads = config["block_out_channels"], config.get("num_attention_heads") or config.get("attention_head_dim")
    if not isinstance(widths, list) or not isinstance(heads, list) or not len(widths) == len(heads) == 3:
        return False
    if not all(isinstance(one, int) and one > 0 for one in (*widths, *heads, *(config[key] for key in NUMBERS[1:]))):
        return False
    groups = config.get("norm_num_groups", 32)
    return not any(width % count or width % groups for width, count in zip(widths, heads, strict=True))


def _weight(path: str, config: Mapping[str, Any]) -> Shape:
    """The weight [O, I, *k] of a layer; [O] of a norm."""
    widths, time = config["block_out_channels"], TIME * config["block_out_channels"][0]
    top = {
        "conv_in": (widths[0], config.get("in_channels", CHANNELS), 3, 3),
        "time_embedding.linear_1": (time, widths[0]),
        "time_embedding.linear_2": (time, time),
        "add_embedding.linear_1": (time, config["projection_class_embeddings_input_dim"]),
        "add_embedding.linear_2": (time, time),
        "conv_norm_out": (widths[0],),
        "conv_out": (config.get("out_channels", CHANNELS), widths[0], 3, 3),
    }
    if path in top:
        return top[path]
    if match := _RESNET.fullmatch(path):
        side, level, number, layer, middle = match.groups()
        width, entering = _widths(side, int(level or 0), int(number or 0), widths)
        return _resnet(layer or middle, width, entering, time)
    match = _LEVEL.fullmatch(path)
    assert match is not None, path
    side, level, layer = match.groups()
    width, _ = _widths(side, int(level or 0), 1, widths)
    return _attention(layer.rpartition("transformer_blocks.")[2], width, config["cross_attention_dim"])


def _widths(side: str | None, level: int, number: int, widths: list[int]) -> tuple[int, int]:
    """(outputs, inputs) of ResNet `number` of a block. Going up, what was left on the way down comes on top."""
    if side is None:
        return widths[2], widths[2]
    if side == "down":
        return widths[level], widths[max(0, level - 1)] if number == 0 else widths[level]
    width, before = widths[2 - level], widths[min(2, 3 - level)]
    skipped = widths[max(0, 1 - level)] if number == 2 else width
    return width, (before if number == 0 else width) + skipped


def _resnet(layer: str, width: int, entering: int, time: int) -> Shape:
    return {
        "norm1": (entering,),
        "conv1": (width, entering, 3, 3),
        "time_emb_proj": (width, time),
        "norm2": (width,),
        "conv2": (width, width, 3, 3),
        "conv_shortcut": (width, entering, 1, 1),
    }[layer]


def _attention(layer: str, width: int, context: int) -> Shape:
    """Of an attention's projections, of what is in its transformer blocks (`0.attn1.to_q`), or of a resampler's `conv`."""
    part = layer.partition(".")[2] if layer[0].isdigit() else layer
    if part.startswith("norm"):
        return (width,)
    return {
        "conv": (width, width, 3, 3),
        "attn2.to_k": (width, context),
        "attn2.to_v": (width, context),
        "ff.net.0.proj": (8 * width, width),  # GEGLU: values and gates of 4 x width
        "ff.net.2": (width, 4 * width),
    }.get(part, (width, width))
