"""SDXL of random weights, in its full widths or in tiny ones, built where it will run: no file is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sdxl_shapes import UNET, VAE
from torch import nn

from lorabuild.nn.base import Base
from lorabuild.nn.networks import NORMS, SINGLE
from lorabuild.nn.tiny import EMBEDDINGS, GAINS

VOCABULARY = 49_408  # tokens of CLIP
HEAD = 64  # channels a head of the U-Net
TIME_IDS = 6 * 256  # of size conditioning, beside the pooled text
LEVELS = (1, 2, 4)  # channels of the U-Net's levels, in those of the first
VAE_LEVELS = (1, 2, 4, 4)


@dataclass(frozen=True)
class Widths:
    """What SDXL's widths all follow from: channels of the U-Net's and the VAE's first level, widths and heads of the text
    encoders. Depths are SDXL's own in any case: an adapter has all its 1,052 layers."""

    unet: int
    vae: int
    te1: int
    te2: int
    heads: tuple[int, int]


FULL = Widths(320, 128, 768, 1280, (12, 20))
TINY = Widths(32, 32, 32, 48, (2, 2))  # the peer's norms have 32 groups: there is nothing narrower


def unet_config(widths: Widths) -> dict[str, Any]:
    channels = [widths.unet * times for times in LEVELS]
    return {
        **UNET,
        "attention_head_dim": [max(1, count // HEAD) for count in channels],  # diffusers' name for the number of heads
        "block_out_channels": channels,
        "cross_attention_dim": widths.te1 + widths.te2,
        "projection_class_embeddings_input_dim": widths.te2 + TIME_IDS,
    }


def vae_config(widths: Widths) -> dict[str, Any]:
    return {**VAE, "block_out_channels": [widths.vae * times for times in VAE_LEVELS], "sample_size": 1024}


def clip_config(widths: Widths, encoder: int) -> dict[str, Any]:
    """Of text encoder 1, CLIP's ViT-L, or 2, OpenCLIP's ViT-bigG."""
    width, layers = ((widths.te1, 12), (widths.te2, 32))[encoder - 1]
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_attention_heads": widths.heads[encoder - 1],
        "num_hidden_layers": layers,
        "hidden_act": ("quick_gelu", "gelu")[encoder - 1],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 77,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": 0,
    }


def random_base(widths: Widths, dtype: torch.dtype, device: str, tokenizers: tuple[Any, Any] = (None, None)) -> Base:
    """U-Net and text encoders, frozen, as the loaders of `lorabuild.nn.base` give them."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with _made_as(dtype, device):
        unet = UNet2DConditionModel(**unet_config(widths))
        te1 = CLIPTextModel(CLIPTextConfig(**clip_config(widths, 1)))
        te2 = CLIPTextModelWithProjection(CLIPTextConfig(**clip_config(widths, 2)))
    for component, network in (("unet", unet), ("text_encoder", te1), ("text_encoder_2", te2)):
        for module in network.modules():
            if isinstance(module, NORMS) and module.weight.itemsize < SINGLE:
                module.float()  # as the loader has them
        _fill(network, GAINS[component])
    return Base(unet, te1, te2, *tokenizers)


def random_vae(widths: Widths, device: str) -> Any:
    """The VAE, in fp32 as it is loaded."""
    from diffusers import AutoencoderKL

    with _made_as(torch.float32, device):
        vae = AutoencoderKL(**vae_config(widths))
    _fill(vae, GAINS["vae"])
    return vae


def parameter_bytes(*networks: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


@contextmanager
def _made_as(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def _fill(network: nn.Module, gains: Mapping[str, float]) -> None:
    """Random weights under which activations stay of order 1, as those of the built-in base: no loss is infinite."""
    torch.manual_seed(0)
    network.requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1)
        else:
            gain = next((gain for part, gain in gains.items() if part in name), 1.0)
            deviation = gain / math.sqrt(parameter[0].numel())
            parameter.normal_(std=next((known for part, known in EMBEDDINGS.items() if part in name), deviation))
