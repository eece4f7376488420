"""Write the built-in base "tiny-sdxl": SDXL's exact block topology, tiny widths, fixed weights, a diffusers folder."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from lorabuild.nn.base_folder import file_name, write_base
from lorabuild.nn.tokenizer import vocabulary

PIXELS = 128  # the side that it is meant for, as 1024 is SDXL's

# All widths differ, and strictly by level, so that a layer's shape tells where it stands.
LEVELS = (32, 48, 64)  # SDXL: 320, 640, 1280
TE1, TE2 = 40, 56  # 768, 1280
HEAD = 16  # channels a head of the U-Net; 64
TEXT_HEADS = 2  # 12 and 20; attention on a CPU takes its time by the head
TIME_ID = 16  # channels a size embedding; 256
VAE_LEVELS = (8, 16, 24, 32)  # 128, 256, 512, 512
GROUPS = 8  # 32
TOKENS = 77

_VOCABULARY_SIZE = len(vocabulary()[0])

_CLIP = {
    "attention_dropout": 0.0,
    "bos_token_id": _VOCABULARY_SIZE - 2,
    "dtype": "float32",
    "eos_token_id": _VOCABULARY_SIZE - 1,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": TOKENS,
    "model_type": "clip_text_model",
    "pad_token_id": 0,
    "vocab_size": _VOCABULARY_SIZE,
}


def _clip(architecture: str, width: int, layers: int, activation: str) -> dict[str, Any]:
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    heads = {"num_attention_heads": TEXT_HEADS, "num_hidden_layers": layers}
    return {"architectures": [architecture], "hidden_act": activation, **shape, **heads, **_CLIP}


# Folder -> config.json, in SDXL's own words; keys that are absent have the libraries' defaults, which are SDXL's.
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_ID,
        "attention_head_dim": [width // HEAD for width in LEVELS],  # diffusers' name for the number of heads
        "block_out_channels": list(LEVELS),
        "cross_attention_dim": TE1 + TE2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_num_groups": GROUPS,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": TE2 + 6 * TIME_ID,
        "sample_size": PIXELS // 8,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(VAE_LEVELS),
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": GROUPS,
        "out_channels": 3,
        "sample_size": PIXELS,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": _clip("CLIPTextModel", TE1, 12, "quick_gelu"),
    "text_encoder_2": _clip("CLIPTextModelWithProjection", TE2, 32, "gelu"),
}
# Standard deviation of a weight times the root of its fan-in, by a part of its name; 1 where none fits. Chosen so that
# hidden states, activations and latents (times scaling_factor) are of order 1 and the U-Net's prediction is about half
# as large as the noise: the residual branches of the deep stacks are damped, the latents are as large as SDXL's.
GAINS: dict[str, dict[str, float]] = {
    "unet": {"to_out.0": 0.5, "ff.net.2": 0.5},
    "vae": {"encoder.conv_out": 8.0, "post_quant_conv": 1 / 8},
    "text_encoder": {"out_proj": 0.3, "fc2": 0.3},
    "text_encoder_2": {"out_proj": 0.3, "fc2": 0.3},
}
EMBEDDINGS = {"token_embedding": 0.5, "position_embedding": 0.1}  # standard deviations


def write_tiny(folder: Path) -> None:
    """Write the base into `folder`, which need not exist: the same bytes on every machine, in seconds."""
    write_base(folder, CONFIGS, _weights)


def _weights(component: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    shapes = _shapes(component, config)
    return {name: fixed_weight(component, name, shape) for name, shape in shapes.items()}


def fixed_weight(component: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of this name, float32: biases 0, norms 1, all else uniform numbers drawn from the name by SHAKE-128.

    Each number is an odd multiple of 2^-24 in (-1, 1), exact, times one bound, rounded once: no library's random
    generator and no processor's arithmetic has a say.
    """
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    count = math.prod(shape)
    words = np.frombuffer(hashlib.shake_128(f"{component}/{name}".encode()).digest(4 * count), "<u4")
    odd = 2 * (words >> 8).astype(np.int64) + 1 - 2**24
    bound = math.sqrt(3) * _standard_deviation(component, name, math.prod(shape[1:]))  # of a uniform distribution
    return (odd * (bound / 2**24)).astype(np.float32).reshape(shape)


def _standard_deviation(component: str, name: str, fan_in: int) -> float:
    for part, deviation in EMBEDDINGS.items():
        if part in name:
            return deviation
    gain = next((gain for part, gain in GAINS[component].items() if part in name), 1.0)
    return gain / math.sqrt(fan_in)


def _shapes(component: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of a component, by the names that SDXL's files have."""
    import torch

    with torch.device("meta"):
        parameters = dict(architecture(component, config).named_parameters())
    return {file_name(component, name): tuple(parameter.shape) for name, parameter in parameters.items()}


def architecture(component: str, config: dict[str, Any]) -> Any:
    if component in ("unet", "vae"):
        import diffusers

        return getattr(diffusers, config["_class_name"]).from_config(config)
    import transformers

    (architecture,) = config["architectures"]
    return getattr(transformers, architecture)(transformers.CLIPTextConfig(**config))
