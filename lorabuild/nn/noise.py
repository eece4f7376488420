"""The noise that a training adds to latents, drawn so that it depends on seed, sample and step alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lorabuild.nn.objective import STEPS
from lorabuild.streams import python_random, stream_seed

SampleName = tuple[int, str, int]  # epoch, image digest, repeat


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream for `purpose`: the same numbers, whatever device trains."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))


def batch_noise(
    latents: Tensor,
    samples: Sequence[SampleName],
    recipe: Mapping[str, Any],
    seed: int,
    update: int,
    micro: int,
) -> Tensor:
    """The noise [B, C, h, w] (fp32, CPU) of one micro-batch: white, then offset, then pyramid noise.

    `latents` are those of the batch, scaled. A sample's white noise and offset do not depend on its company; the
    strength of the offset, where it is random, and the coarser levels are those of micro-batch `micro` of `update`.
    """
    noise = _normals(latents.shape[1:], "noise", samples, seed)
    if recipe.get("noise_offset"):
        offset = offsets(latents, _strength(recipe, "noise_offset", seed, update, micro), recipe)
        noise = noise + offset * _normals((latents.shape[1], 1, 1), "noise_offset", samples, seed)
    if not recipe.get("multires_noise_iterations"):
        return noise
    levels = generator(seed, "pyramid", update, micro)
    return pyramid_noise(
        noise,
        recipe["multires_noise_iterations"],
        recipe["multires_noise_discount"],
        draw_ratio=python_random(seed, "pyramid", update, micro).random,
        draw_normal=lambda level_shape: torch.randn(level_shape, generator=levels),
        std=recipe.get("pyramid_std", "batch"),
    )


def perturbation(
    shape: Sequence[int],
    samples: Sequence[SampleName],
    recipe: Mapping[str, Any],
    seed: int,
    update: int,
    micro: int,
) -> Tensor | None:
    """What is added to the noise of the input, but not of the target: ip_noise_gamma times white noise of `shape`.

    It makes up for the errors of a sampler's earlier steps, which training never sees ("input perturbation",
    Ning et al. 2023). None without it.
    """
    if not recipe.get("ip_noise_gamma"):
        return None
    strength = _strength(recipe, "ip_noise_gamma", seed, update, micro)
    return strength * _normals(shape[1:], "ip_noise", samples, seed)


def draw_timesteps(samples: Sequence[SampleName], recipe: Mapping[str, Any], seed: int) -> Tensor:
    """The timestep of each sample [B]: even over min_timestep … max_timestep - 1, or that one where both are equal."""
    least, end = recipe.get("min_timestep", 0), recipe.get("max_timestep", STEPS)
    if least == end:
        return torch.full((len(samples),), end)
    return torch.cat([torch.randint(least, end, (1,), generator=generator(seed, "timestep", *one)) for one in samples])


def offsets(latents: Tensor, noise_offset: float, recipe: Mapping[str, Any]) -> Tensor | float:
    """How strong the offset of each channel is, [B, C, 1, 1] or one number: noise_offset, by the latents if adaptive.

    Adaptive: noise_offset + adaptive_noise_scale · |mean of the channel|, at least 0 (sd-scripts; N. Guttenberg,
    "Diffusion with Offset Noise", 2023).
    """
    adaptive = recipe.get("adaptive_noise_scale")
    if not adaptive:
        return noise_offset
    means = latents.mean(dim=(2, 3), keepdim=True).cpu()  # the latents may lie on a GPU, the noise does not
    return (noise_offset + adaptive * means.abs()).clamp(min=0.0)


def _normals(shape: Sequence[int], purpose: str, samples: Sequence[SampleName], seed: int) -> Tensor:
    """A standard normal of `shape` for each sample, from a stream of its own."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(seed, purpose, *one)) for one in samples])


def _strength(recipe: Mapping[str, Any], key: str, seed: int, update: int, micro: int) -> float:
    """The value of `key`, or with its _random_strength a number below it, even, and one for a micro-batch."""
    part = python_random(seed, f"{key}_strength", update, micro).random() if recipe.get(f"{key}_random_strength") else 1
    return recipe[key] * part


def pyramid_noise(
    noise: Tensor,
    iterations: int,
    discount: float,
    draw_ratio: Callable[[], float],
    draw_normal: Callable[[tuple[int, ...]], Tensor],
    std: str = "batch",
) -> Tensor:
    """`noise` [B, C, H, W] plus ever coarser noise, at unit standard deviation over the whole batch, or each sample.

    Level i = 0, 1, … < `iterations` is a normal draw of H/rⁱ x W/rⁱ cells, enlarged and weighted by `discount`ⁱ; r is
    uniform in 2..4 and new for each level. It ends after a level with a side of one cell: `iterations` = 12 means "all
    the way down" for any picture. `draw_ratio` gives U(0, 1), `draw_normal` a standard normal of a shape. (J. Whitaker,
    "Multi-Resolution Noise for Diffusion Model Training", 2023; levels and ratios as in sd-scripts.)
    """
    *batch_and_channels, height, width = noise.shape
    for level in range(iterations):
        ratio = 2 + 2 * draw_ratio()
        cells = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
        coarse = draw_normal((*batch_and_channels, *cells))
        noise = noise + interpolate(coarse, size=(height, width), mode="bilinear") * discount**level
        if 1 in cells:
            break
    return noise / (noise.std(dim=(1, 2, 3), keepdim=True) if std == "sample" else noise.std())
