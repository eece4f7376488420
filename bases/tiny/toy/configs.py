"""The shapes of the base that draws: SDXL's topology as the random base has it, other widths where the asset needs them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from lorabuild.nn import tiny

SIZE = tiny.PIXELS
CHANNELS, FACTOR = 4, 8  # of latents: values a place, pixels a place
TE1, TE2 = 24, 56  # all widths differ, as in the random base
VAE_LEVELS = [16, 24, 32, 40]


def _configs() -> dict[str, dict[str, Any]]:
    found = deepcopy(tiny.CONFIGS)
    found["vae"]["block_out_channels"] = VAE_LEVELS
    for name, width in (("text_encoder", TE1), ("text_encoder_2", TE2)):
        # Feed-forward layers are twice as wide as the rest, not four times: a megabyte in 9 is saved.
        found[name] |= {"hidden_size": width, "projection_dim": width, "intermediate_size": 2 * width}
    found["unet"]["cross_attention_dim"] = TE1 + TE2
    found["unet"]["projection_class_embeddings_input_dim"] = TE2 + 6 * found["unet"]["addition_time_embed_dim"]
    return found


CONFIGS = _configs()  # folder -> config.json


def made(component: str, seed: int) -> nn.Module:
    """The component with the libraries' own random weights."""
    torch.manual_seed(seed)
    return tiny.architecture(component, CONFIGS[component])
