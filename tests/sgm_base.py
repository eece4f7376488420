"""The tiny base as a single file in SGM's layout, tensor for tensor: what UIs load."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_base import tiny_folder

from lorabuild.components import PREFIXES
from lorabuild.lora.keymap import to_sgm

OPENCLIP = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def write_sgm(path: Path, dtype: torch.dtype | None = None) -> Path:
    """U-Net and text encoders of the tiny base; its VAE under diffusers' own names, which nobody reads here."""
    tensors = dict(_tensors())
    save_file({name: one.to(dtype) if dtype else one for name, one in tensors.items()}, path)
    return path


@cache
def _tensors() -> tuple[tuple[str, torch.Tensor], ...]:
    base = tiny_folder()
    unet = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    te1 = load_file(base / "text_encoder/model.safetensors")
    te2 = load_file(base / "text_encoder_2/model.safetensors")
    vae = load_file(base / "vae/diffusion_pytorch_model.safetensors")
    found = {PREFIXES["unet"] + to_sgm(name): one for name, one in unet.items()}
    found |= {PREFIXES["te1"] + _with_text_model(name): one for name, one in te1.items()}
    found |= {PREFIXES["vae"] + name: one for name, one in vae.items()}
    found |= {PREFIXES["te2"] + name: one for name, one in _openclip(te2).items()}
    return tuple(found.items())


def _with_text_model(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _openclip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' CLIP as OpenCLIP has it: q, k, v in one matrix, text_projection transposed."""
    found: dict[str, torch.Tensor] = {}
    stacked: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
            continue
        if not name.startswith("encoder.layers."):
            found[f"other.{name}"] = tensor
            continue
        number, rest = name.removeprefix("encoder.layers.").split(".", 1)
        module, _, kind = rest.rpartition(".")
        block = f"transformer.resblocks.{number}"
        if module in OPENCLIP:
            found[f"{block}.{OPENCLIP[module]}.{kind}"] = tensor
        elif module.endswith(("q_proj", "k_proj", "v_proj")):
            stacked.setdefault(f"{block}.attn.in_proj_{kind}", {})[module[-6]] = tensor
        else:
            found[f"{block}.{module}.{kind}"] = tensor
    return found | {name: torch.cat([parts[one] for one in "qkv"]) for name, parts in stacked.items()}
