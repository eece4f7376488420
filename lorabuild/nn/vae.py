"""Encode pixels into latents with the VAE of a base, in fp32."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lorabuild.nn.networks import load_network
from lorabuild.nn.warm import kept


def load_vae(base: Path, digest: str | None = None) -> AutoencoderKL:
    """The VAE of `base`, in fp32, for inference, on the GPU if there is one: of a base, or by itself, in a file or folder.

    With `digest`, that of its weights, it is kept for the next call. Only safetensors are read. Raises OSError for
    files that are missing, and JobError for weights that are not all that config.json, or SDXL's VAE, has.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = kept("vae", digest, torch.float32, base, lambda: load_network(base, "vae", torch.float32, device))
    if device == "cuda":
        vae.to(device, memory_format=torch.channels_last)  # the order in which tensor cores take a convolution's inputs
    return vae


@torch.inference_mode()
def encode(vae: AutoencoderKL, pixels: Tensor, chance: torch.Generator | None = None) -> Tensor:
    """The posterior mean [B, 4, h/8, w/8] (fp32, CPU, not scaled) of `pixels` [B, 3, h, w] in -1..1.

    The mean, not a draw: the latents of an image are then a function of the image, and SDXL's posterior is so narrow
    that a draw adds little. With `chance` it is a draw nevertheless, by that stream. For equal bytes give one image at a
    time: in a batch the last bits come out otherwise.
    """
    found = vae.encode(pixels.to(vae.device, torch.float32)).latent_dist
    mean = found.mean.float().cpu()
    return mean if chance is None else mean + found.std.float().cpu() * torch.randn(mean.shape, generator=chance)
