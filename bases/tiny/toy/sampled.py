"""Pictures from a base, many at once: Euler's method with guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorabuild.nn.base import Base
from lorabuild.nn.noise import generator
from lorabuild.nn.samplers import make_sampler
from lorabuild.nn.text import TOKENS
from toy.configs import CHANNELS, FACTOR, SIZE
from toy.text import conditions
from toy.unet import sizes
from toy.vae import decoded

STEPS, GUIDANCE = 20, 3.0  # at 4 and more its colours are too strong


@torch.no_grad()
def sampled(
    base: Base, vae: Any, captions: Sequence[str], seed: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> np.ndarray:
    """uint8 [N, side, side, 3]; noise n is that of (seed, n), whatever the captions are."""
    shape = CHANNELS, SIZE // FACTOR, SIZE // FACTOR
    noise = torch.stack([torch.randn(shape, generator=generator(seed, "picture", n)) for n in range(len(captions))])
    hidden, pooled = conditions(base.te1, base.te2, ["", *captions], TOKENS)
    device = next(base.unet.parameters()).device

    def both(one: Tensor) -> Tensor:
        return torch.cat([one[:1].expand(len(captions), *one.shape[1:]), one[1:]]).to(device)

    given = {"text_embeds": both(pooled), "time_ids": sizes(2 * len(captions)).to(device)}
    texts = both(hidden)
    sampler = make_sampler("euler", steps)
    latents = noise * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        seen = sampler.scale_model_input(latents, timestep).to(device)
        answer = base.unet(torch.cat([seen, seen]), timestep.to(device), texts, added_cond_kwargs=given).sample.cpu()
        without, with_text = answer.chunk(2)
        latents = sampler.step(without + guidance * (with_text - without), timestep, latents, return_dict=False)[0]
    return ((decoded(vae, latents) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def sheet(pictures: np.ndarray, columns: int) -> Any:
    """A PIL image of all, row by row."""
    from PIL import Image

    rows = [np.concatenate(list(pictures[at : at + columns]), axis=1) for at in range(0, len(pictures), columns)]
    width = rows[0].shape[1]
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return Image.fromarray(np.concatenate(padded))
