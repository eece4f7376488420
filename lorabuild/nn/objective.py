"""What training minimises: the squared error of the predicted noise, at timesteps drawn evenly."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
LATENT_SCALE = 0.13025  # of SDXL's VAE: latents are stored as encoded and trained at about unit variance


def alphas_cumprod() -> Tensor:
    """The share of the image's variance that is left at each of the 1000 timesteps (Ho et al. 2020), [1000] float32.

    "Scaled linear": the roots of the betas are evenly spaced, as Stable Diffusion was trained.
    """
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = sqrt(ā_t) x_0 + sqrt(1 - ā_t) ε (Ho et al. 2020, eq. 4). latents and noise [B, C, H, W], timesteps [B]."""
    kept = alphas_cumprod().to(latents.device)[timesteps].view(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1.0 - kept).sqrt() * noise


def epsilon_losses(prediction: Tensor, noise: Tensor) -> Tensor:
    """The loss of each sample [B], float32: mean over channels and pixels of (prediction - noise)^2."""
    return (prediction.float() - noise.float()).square().mean(dim=(1, 2, 3))
