"""Train the VAE: first as a whole, then its decoder alone, and make its latents white."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorabuild.hashing import digest_bytes
from lorabuild.nn.noise import generator
from toy.configs import CHANNELS, FACTOR
from toy.learn import Log, Plan, learn
from toy.pool import as_input

SCALE = 0.13025  # SDXL's scaling_factor: latents times it have a standard deviation of 1
CROP = 64  # pixels a side: twice as many pictures in the same time
KL_WEIGHT = 1e-4
LATENT_NOISE = 0.05  # of a standard deviation, for the decoder: a sampler's latents are never exact
LOG_VARIANCE = (-8.0, 2.0)
MARGIN = 4  # pixels at the edge of a crop that do not count: there the decoder would see what was cut off


def train_whole(
    vae: nn.Module, folder: Path, pixels: np.ndarray, held: Tensor, seed: int, batch: int, plan: Plan, log: Log
) -> None:
    """Encoder and decoder on crops [batch, 3, 64, 64] of `pixels` [N, 3, side, side]; `held` [M, 3, side, side] is for PSNR."""

    def loss_at(step: int) -> Tensor:
        draw = generator(seed, "vae", step)
        crops = _crops(pixels, batch, draw).to(next(vae.parameters()).device)
        latent = vae.encode(crops).latent_dist
        log_variance = latent.logvar.clamp(*LOG_VARIANCE)
        noise = torch.randn(latent.mean.shape, generator=draw).to(crops.device)
        found = vae.decode(latent.mean + noise * (log_variance / 2).exp()).sample
        divergence = 0.5 * (latent.mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return _distance(found, crops) + KL_WEIGHT * divergence

    learn("vae", folder, {"vae": vae}, loss_at, plan, log, lambda: f"PSNR {psnr(vae, held):.2f} dB")


def train_decoder(
    vae: nn.Module, folder: Path, pixels: np.ndarray, held: Tensor, seed: int, batch: int, plan: Plan, log: Log
) -> None:
    """The decoder alone, on noised latents of an encoder that stays as it is."""
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)

    def loss_at(step: int) -> Tensor:
        draw = generator(seed, "decoder", step)
        crops = _crops(pixels, batch, draw).to(next(vae.parameters()).device)
        with torch.no_grad():
            latents = vae.encode(crops).latent_dist.mean
            latents += LATENT_NOISE / SCALE * torch.randn(latents.shape, generator=draw).to(crops.device)
        inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
        return _distance(vae.decode(latents).sample[inner], crops[inner])

    learn(
        "decoder", folder, {"vae": vae}, loss_at, plan, log, lambda: f"PSNR {psnr(vae, held):.2f} dB", of=_digest(vae)
    )


def _digest(vae: nn.Module) -> str:
    return digest_bytes(b"".join(p.detach().cpu().numpy().tobytes() for p in vae.parameters()))


def _crops(pixels: np.ndarray, batch: int, draw: torch.Generator) -> Tensor:
    """Some mirrored, some with colour channels exchanged, so that colours decode that no picture has."""
    side = pixels.shape[-1] - CROP
    crops = []
    for index in torch.randint(len(pixels), (batch,), generator=draw).tolist():
        y, x = torch.randint(side + 1, (2,), generator=draw).tolist()
        crop = as_input(pixels[index, :, y : y + CROP, x : x + CROP])
        mirrored, exchanged = (torch.rand(2, generator=draw) < 0.3).tolist()
        crop = crop.flip(2) if mirrored else crop
        crops.append(crop[torch.randperm(3, generator=draw)] if exchanged else crop)
    return torch.stack(crops)


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Absolute and squared differences, and half as much those of the slopes: edges count."""
    error = found - wanted
    slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * slopes


@torch.no_grad()
def encoded(vae: nn.Module, pixels: np.ndarray | Tensor, batch: int = 32) -> Tensor:
    """Latents [N, 4, h, w] of pixels (uint8, or floats in -1 … 1), scaled."""
    device = next(vae.parameters()).device
    inputs: Callable[[Any], Tensor] = (lambda part: part) if isinstance(pixels, Tensor) else as_input
    parts = [
        vae.encode(inputs(pixels[start : start + batch]).to(device)).latent_dist.mean.cpu()
        for start in range(0, len(pixels), batch)
    ]
    return torch.cat(parts) * SCALE


@torch.no_grad()
def decoded(vae: nn.Module, latents: Tensor, batch: int = 32) -> Tensor:
    """Pixels [N, 3, side, side] in -1 … 1 of scaled latents."""
    device = next(vae.parameters()).device
    parts = [vae.decode(part.to(device) / SCALE).sample.cpu() for part in latents.split(batch)]
    return torch.cat(parts).clamp(-1, 1)


def psnr(vae: nn.Module, held: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of `held` [M, 3, side, side] after encoding and decoding."""
    error = (decoded(vae, encoded(vae, held)) - held).square().mean() / 4  # the peak-to-peak range is 2
    return -10 * float(torch.log10(error))


@torch.no_grad()
def whiten(vae: nn.Module, pixels: np.ndarray) -> None:
    """Rewrite quant_conv and post_quant_conv so that scaled latents have mean 0 and unit covariance (ZCA).

    Both convolutions are 1 x 1, so that this changes no picture: with latents z = W (x - m) the first takes W in, the
    second its inverse.
    """
    latents = encoded(vae, pixels).permute(0, 2, 3, 1).reshape(-1, CHANNELS).double() / SCALE
    mean, covariance = latents.mean(0), torch.cov(latents.T)
    values, vectors = torch.linalg.eigh(covariance)
    white = vectors @ torch.diag(values**-0.5) @ vectors.T / SCALE
    back = vectors @ torch.diag(values**0.5) @ vectors.T * SCALE
    device = vae.quant_conv.weight.device
    into, out = vae.quant_conv, vae.post_quant_conv
    weight, bias = into.weight[:CHANNELS, :, 0, 0].cpu().double(), into.bias[:CHANNELS].cpu().double()
    into.weight[:CHANNELS, :, 0, 0] = (white @ weight).float().to(device)
    into.bias[:CHANNELS] = (white @ (bias - mean)).float().to(device)
    into.weight[CHANNELS:], into.bias[CHANNELS:] = 0.0, LOG_VARIANCE[0]  # no variance: the mean is what is meant
    weight = out.weight[:, :, 0, 0].cpu().double()
    out.bias += (weight @ mean).float().to(device)
    out.weight[:, :, 0, 0] = (weight @ back).float().to(device)


def places(size: int) -> int:
    """Latent places a side of a picture of `size` pixels."""
    return size // FACTOR
