"""Write a base as one file in SGM's layout, as checkpoints of SDXL are published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sdxl_shapes import TE1_KEY, TE2_KEY, UNET_KEY, VAE_KEY, VAE_NAMES
from torch import Tensor

from lorabuild.lora.keymap import to_sgm
from lorabuild.nn.base import Base

# OpenCLIP's names for parts of transformers' layers; q, k and v are one matrix there.
OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.", "self_attn.out_proj.": "attn.out_proj.", "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.", "layer_norm": "ln_", "final_ln_": "ln_final", "embeddings.token_": "token_",
    "embeddings.position_embedding.weight": "positional_embedding", "text_projection.weight": "text_projection",
}  # fmt: skip


def write_checkpoint(path: Path, base: Base, vae: Any, dtype: torch.dtype) -> None:
    """All of SDXL's 2,515 tensors, by SGM's names, in `dtype`."""
    from safetensors.torch import save_file

    def cast(tensor: Tensor) -> Tensor:
        return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().cpu()

    save_file({name: cast(tensor) for name, tensor in sgm_tensors(base, vae)}, path)


def sgm_tensors(base: Base, vae: Any) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in base.unet.state_dict().items():
        yield UNET_KEY + to_sgm(name), tensor
    for name, tensor in vae.state_dict().items():
        yield VAE_KEY + _ldm(name), tensor[..., None, None] if _is_matrix(name, tensor) else tensor
    for name, tensor in base.te1.state_dict().items():
        yield TE1_KEY + name.removeprefix("text_model."), tensor
    yield TE1_KEY + "embeddings.position_ids", torch.arange(77)[None]
    yield from _open_clip(base.te2)


def _ldm(name: str) -> str:
    for diffusers, ldm in VAE_NAMES.items():
        name = name.replace(diffusers, ldm)
    return name


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """LDM's attention is made of 1×1 convolutions, diffusers' of matrices."""
    return "attentions" in name and tensor.dim() == 2


def _open_clip(te2: Any) -> Iterator[tuple[str, Tensor]]:
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in te2.state_dict().items()}
    for name, tensor in tensors.items():
        if ".self_attn.q_proj." in name:
            whole = torch.cat([tensors[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            layer, _, kind = name.partition(".self_attn.q_proj.")
            yield (
                TE2_KEY + layer.replace("encoder.layers.", OPEN_CLIP["encoder.layers."]) + f".attn.in_proj_{kind}",
                whole,
            )
        elif not any(f".self_attn.{part}_proj." in name for part in "kv"):
            for ours, theirs in OPEN_CLIP.items():
                name = name.replace(ours, theirs)
            # transformers has it as a layer's weight, OpenCLIP as a matrix from the right.
            yield TE2_KEY + name, tensor.T if name == "text_projection" else tensor
    yield TE2_KEY + "logit_scale", torch.zeros(())
