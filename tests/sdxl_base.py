"""SDXL itself, as far as it goes without its numbers: its configs, and its tensors' names and shapes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from sdxl_shapes import UNET, VAE
from torch import Tensor

from lorabuild.nn.networks import architecture
from lorabuild.writing import header_bytes

SDXL: dict[str, dict[str, Any]] = {
    "unet": UNET,
    "vae": {**VAE, "scaling_factor": 0.13025},
    "te1": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "vocab_size": 49408},
    "te2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "vocab_size": 49408,
        "hidden_act": "gelu",
    },
}


def sparse(path: Path, tensors: dict[str, Tensor], dtype: str = "F16") -> None:
    """A file of these names and shapes and of no numbers: it takes no room on the disk."""
    header = header_bytes([(name, dtype, tuple(one.shape)) for name, one in tensors.items()], {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * sum(one.numel() for one in tensors.values()))


@cache
def sdxl(component: str) -> dict[str, Tensor]:
    """diffusers' and transformers' names, as their files have them -> shapes."""
    state = architecture(component, SDXL[component], "SDXL").state_dict()
    text = component in ("te1", "te2")
    return {
        f"text_model.{name}" if text and not name.startswith(("text_model.", "text_projection.")) else name: one
        for name, one in state.items()
    }
