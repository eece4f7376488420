"""Draw a picture with an SDXL: from noise, by a sampler, with a prompt and what it should not show."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorabuild.errors import JobError
from lorabuild.nn.base import DTYPES, Base
from lorabuild.nn.conditions import condition
from lorabuild.nn.noise import generator
from lorabuild.nn.present import present
from lorabuild.nn.samplers import make_sampler
from lorabuild.nn.text import size_ids

CHANNELS, CELL = 4, 8  # of SDXL's latents: numbers a cell, pixels a side of it


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is drawn in this block leaves no trace in a training around it: neither gradients nor random numbers."""
    with torch.random.fork_rng(), torch.no_grad():
        yield


def draw(
    base: Base,
    vae: Callable[[], Any],
    picture: Mapping[str, Any],
    device: str = "cpu",
    stepped: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """The picture, uint8 [h, w, 3], of the settings `picture`: prompt, negative_prompt, width, height, seed, scale,
    sample_steps, sampler, parity, prediction_type, zero_terminal_snr, mixed_precision.

    `vae` is asked for when the latents are done, and decodes in float32. `stepped(done, total)` is called before each run
    of the U-Net, and may raise. Raises JobError where the result is not finite.
    """
    with undisturbed():
        latents = _latents(base, picture, device, stepped)
        decoder = vae()
        with present([decoder], device):
            return _pixels(decoder, _finite(latents, "latents"))


def _latents(
    base: Base, picture: Mapping[str, Any], device: str, stepped: Callable[[int, int], None]
) -> Tensor:  # [1, 4, h/8, w/8]
    dtype, scale = DTYPES[picture["mixed_precision"]], picture["scale"]
    guided = scale != 1  # then the answer to the negative prompt cancels out
    texts = [picture["negative_prompt"], picture["prompt"]] if guided else [picture["prompt"]]
    sampler = make_sampler(
        picture["sampler"],
        picture["sample_steps"],
        picture["prediction_type"],
        picture["zero_terminal_snr"],
        picture["parity"],
    )
    chance = generator(picture["seed"], "sample")  # of samplers that add noise on the way
    extra = {"generator": chance} if "generator" in inspect.signature(sampler.step).parameters else {}
    size = picture["width"], picture["height"]
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        with present([base.te1, base.te2], device):
            hidden, pooled = condition(base, texts, device)
        sizes = size_ids([size] * len(texts), [(0, 0)] * len(texts), [size] * len(texts)).to(device)
        conditions = {"text_embeds": pooled.to(dtype), "time_ids": sizes}
        latents = _first_noise(picture) * sampler.init_noise_sigma
        for done, timestep in enumerate(sampler.timesteps):
            stepped(done, len(sampler.timesteps))
            seen = sampler.scale_model_input(latents, timestep).to(device, dtype)
            answer = base.unet(
                seen.expand(len(texts), -1, -1, -1), timestep.to(device), hidden.to(dtype), added_cond_kwargs=conditions
            ).sample.float()
            if guided:  # classifier-free guidance (Ho & Salimans 2022)
                without, with_prompt = answer.chunk(2)
                answer = without + scale * (with_prompt - without)
            # The few numbers of a latent are stepped on the CPU: there a sampler rounds the same way for every device.
            latents = sampler.step(answer.cpu(), timestep, latents, return_dict=False, **extra)[0]
    return latents


def _first_noise(picture: Mapping[str, Any]) -> Tensor:
    """What the picture is made from: torch's own numbers for the seed, drawn on the CPU, as ComfyUI has them."""
    shape = 1, CHANNELS, picture["height"] // CELL, picture["width"] // CELL
    return torch.randn(shape, generator=torch.Generator().manual_seed(picture["seed"]))


def _pixels(vae: Any, latents: Tensor) -> np.ndarray:
    decoded = vae.decode(latents.to(vae.device, torch.float32) / vae.config.scaling_factor, return_dict=False)[0]
    unit = (_finite(decoded[0].float().cpu(), "pixels") / 2 + 0.5).clamp(0, 1)
    return (unit.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def _finite(numbers: Tensor, what: str) -> Tensor:
    if not torch.isfinite(numbers).all():
        raise JobError(f"the picture's {what} are not finite: the weights, or the precision, do not bear it")
    return numbers
