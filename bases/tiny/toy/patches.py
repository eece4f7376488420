"""Stand-in for the VAE: the four principal components of 8 x 8 patches, white; to compare cures before a VAE is there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import unfold

from toy.configs import CHANNELS, FACTOR
from toy.pool import as_input

FITTED_ON = 1000


def latents(pixels: np.ndarray, held: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Latents [N, 4, h, w] of pixels [N, 3, side, side], uint8, and of `held`, -1 … 1, in the same components."""
    first = _patches(as_input(pixels[:FITTED_ON]))
    mean = first.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((first - mean).T))
    towards = vectors[:, -CHANNELS:] / values[-CHANNELS:].sqrt()

    def of(part: Tensor) -> Tensor:
        side = part.shape[-1] // FACTOR
        return ((_patches(part) - mean) @ towards).view(len(part), side, side, CHANNELS).permute(0, 3, 1, 2)

    parts = [of(as_input(pixels[start : start + batch])).half() for start in range(0, len(pixels), batch)]
    return torch.cat(parts), of(held)


def _patches(pixels: Tensor) -> Tensor:
    """[N, 3, side, side] -> [N * places, 192]."""
    return unfold(pixels, FACTOR, stride=FACTOR).transpose(1, 2).reshape(-1, 3 * FACTOR**2)
