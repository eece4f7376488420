"""What the asset says of itself, in its metadata."""

from __future__ import annotations

from typing import Any


def card(settings: Any) -> dict[str, str]:
    """Title, data, training, licence: enough to make it again."""
    steps = (
        f"VAE {settings.vae_steps} + {settings.decoder_steps}, text {settings.text_steps}, U-Net {settings.unet_steps}"
    )
    return {
        "title": "tiny: SDXL's blocks in 8.5 million parameters",
        "data": f"{settings.pictures} pictures of creatures, drawn by bases/tiny/toy/draw, seed {settings.seed}; no other data",
        "training": f"bases/tiny/train.py; updates: {steps}; {settings.cure}",
        "held_back": "the character ember, the styles blueprint and ink: nothing was trained on them",
        "limits": "draws creatures by the tags of its grammar, 128 pixels a side; knows no other word",
        "license": "MIT",
    }
