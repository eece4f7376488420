"""A base in the layouts that people have: the tiny one, or one of SDXL's widths, as a single file in SGM's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sdxl_shapes import VAE_NAMES
from tiny_base import tiny_folder

from lorabuild.components import PREFIXES
from lorabuild.lora.keymap import to_sgm

OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "te1": "text_encoder/model.safetensors",
    "te2": "text_encoder_2/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
# What no shape of the tiny base tells, as its file has to say it.
METADATA = {"lorabuild.base": json.dumps({"head_channels": 16, "norm_groups": 8, "text_head_channels": [20, 28]})}
# What stands in files beside the weights: of trainings, of older libraries, of other programs.
LEFTOVERS = {
    "denoiser.sigmas": torch.zeros(4),
    "model_ema.diffusion_modelout2bias": torch.ones(3),
    PREFIXES["te1"] + "text_model.embeddings.position_ids": torch.arange(77)[None],
    PREFIXES["te1"] + "text_projection.weight": torch.eye(4),
    PREFIXES["te2"] + "logit_scale": torch.tensor(4.6),
    PREFIXES["te2"] + "transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    PREFIXES["vae"] + "loss.logvar": torch.zeros(()),
}
Tensors = dict[str, torch.Tensor]


def write_sgm(
    path: Path, dtype: torch.dtype | None = None, more: Mapping[str, torch.Tensor] | None = None, vae: bool = True
) -> Path:
    """The tiny base as UIs load one, with or without its VAE; `more` stands beside it."""
    tensors = {name: one for part in FILES for name, one in _part(part).items() if vae or part != "vae"}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: (one.to(dtype) if dtype else one).contiguous() for name, one in tensors.items()}
    save_file(tensors | dict(more or {}), path, METADATA)
    return path


def write_vae(path: Path, prefix: str = "", dtype: torch.dtype | None = None) -> Path:
    """The tiny base's VAE in a file of its own."""
    tensors = {prefix + name.removeprefix(PREFIXES["vae"]): one for name, one in _part("vae").items()}
    save_file({name: (one.to(dtype) if dtype else one).contiguous() for name, one in tensors.items()}, path, METADATA)
    return path


def sgm_names(component: str, tensors: Tensors) -> Tensors:
    """A component's tensors by the names, and in the shapes, of SGM's single file."""
    found = {"unet": _unet, "vae": _vae, "te1": _te1, "te2": _te2}[component](tensors)
    return {PREFIXES[component] + name: one for name, one in found.items()}


def _part(component: str) -> Tensors:
    return sgm_names(component, load_file(tiny_folder() / FILES[component]))


def _unet(weights: Tensors) -> Tensors:
    return {to_sgm(name): one for name, one in weights.items()}


def _vae(weights: Tensors) -> Tensors:
    found = {}
    for name, tensor in weights.items():
        for diffusers, ldm in VAE_NAMES.items():
            name = name.replace(diffusers, ldm)
        found[name] = tensor[:, :, None, None] if "attn_1" in name and tensor.dim() == 2 else tensor
    return found


def _te1(weights: Tensors) -> Tensors:
    return {name if name.startswith("text_model.") else f"text_model.{name}": one for name, one in weights.items()}


def _te2(weights: Tensors) -> Tensors:
    """transformers' CLIP as OpenCLIP has it: q, k, v in one matrix, text_projection transposed."""
    found: Tensors = {}
    stacked: dict[str, Tensors] = {}
    for name, tensor in weights.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
            continue
        if name in OUTSIDE:
            found[OUTSIDE[name]] = tensor
            continue
        number, rest = name.removeprefix("encoder.layers.").split(".", 1)
        module, _, kind = rest.rpartition(".")
        block = f"transformer.resblocks.{number}"
        if module in OPENCLIP:
            found[f"{block}.{OPENCLIP[module]}.{kind}"] = tensor
        else:
            stacked.setdefault(f"{block}.attn.in_proj_{kind}", {})[module[-6]] = tensor
    return found | {name: torch.cat([parts[one] for one in "qkv"]) for name, parts in stacked.items()}
