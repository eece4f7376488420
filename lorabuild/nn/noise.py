"""The noise that a training adds to latents, drawn so that it depends on seed, sample and step alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lorabuild.streams import python_random, stream_seed


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream for `purpose`: the same numbers, whatever device trains."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))


def batch_noise(
    shape: Sequence[int],
    samples: Sequence[tuple[int, str, int]],
    recipe: Mapping[str, Any],
    seed: int,
    update: int,
    micro: int,
) -> Tensor:
    """The noise [B, C, h, w] (fp32, CPU) of one micro-batch.

    `shape` is that of the batch's latents; `samples` names each by (epoch, image digest, repeat): a sample's white
    noise does not depend on its company. With `multires_noise_iterations` the batch, micro-batch `micro` of update
    `update`, gets coarser levels on top.
    """
    white = [torch.randn(tuple(shape[1:]), generator=generator(seed, "noise", *sample)) for sample in samples]
    noise = torch.stack(white)
    if not recipe.get("multires_noise_iterations"):
        return noise
    levels = generator(seed, "pyramid", update, micro)
    return pyramid_noise(
        noise,
        recipe["multires_noise_iterations"],
        recipe["multires_noise_discount"],
        draw_ratio=python_random(seed, "pyramid", update, micro).random,
        draw_normal=lambda level_shape: torch.randn(level_shape, generator=levels),
    )


def pyramid_noise(
    noise: Tensor,
    iterations: int,
    discount: float,
    draw_ratio: Callable[[], float],
    draw_normal: Callable[[tuple[int, ...]], Tensor],
) -> Tensor:
    """`noise` [B, C, H, W] plus ever coarser noise, at unit standard deviation over the whole batch.

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
    return noise / noise.std()
