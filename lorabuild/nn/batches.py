"""Make micro-batches of a data set and its latents: what a sample sees follows from the seed and its name alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lorabuild.captions import draw_caption
from lorabuild.images import latent_name
from lorabuild.nn.noise import batch_noise, generator
from lorabuild.nn.objective import LATENT_SCALE, STEPS
from lorabuild.nn.text import size_ids
from lorabuild.order import Sample, batches_per_epoch, micro_batches
from lorabuild.streams import python_random, stream_seed

HELD_OUT_BATCHES = 3  # forward passes alone: less than two micro-batches of training


@dataclass(frozen=True)
class Data:
    """A data set as training reads it: dataset.json, and what gives the tensor of a name in its latents."""

    dataset: Mapping[str, Any]
    latents: Callable[[str], Tensor]

    @property
    def images(self) -> Sequence[Mapping[str, Any]]:
        return self.dataset["images"]

    @cached_property
    def first_repeat(self) -> list[int]:
        """The number of each entry's first repeat among all repeats of its picture: it may stand in several entries."""
        seen: Counter[str] = Counter()
        numbers = []
        for image in self.images:
            numbers.append(seen[image["digest"]])
            seen[image["digest"]] += image["repeats"]
        return numbers


@dataclass(frozen=True)
class MicroBatch:
    """B samples of one bucket, on the CPU. Latents are scaled; the noise is not yet added."""

    latents: Tensor  # [B, 4, h, w]
    noise: Tensor  # [B, 4, h, w]
    timesteps: Tensor  # [B]
    captions: list[str]
    sizes: Tensor  # [B, 6]


def micro_batch(
    data: Data, recipe: Mapping[str, Any], seed: int, epoch: int, samples: Sequence[Sample], update: int, micro: int
) -> MicroBatch:
    """Micro-batch `micro` of update `update` (from 0): `samples` of `epoch`, as `lorabuild.order` deals them.

    Flip, caption, timestep and white noise of a sample come from streams keyed by (epoch, picture, repeat), whatever
    else is in its batch. The size conditioning tells the crop that was made, mirrored with the picture.
    """
    images = [data.images[index] for index, _ in samples]
    names = [
        (epoch, image["digest"], data.first_repeat[index] + repeat)
        for image, (index, repeat) in zip(images, samples, strict=True)
    ]
    settings = data.dataset["settings"]
    flips = [settings["flip_aug"] and python_random(seed, "flip", *name).random() < 0.5 for name in names]
    latents = torch.stack([data.latents(latent_name(i, flip)) for i, flip in zip(images, flips, strict=True)])
    return MicroBatch(
        latents=latents * LATENT_SCALE,
        noise=batch_noise(latents.shape, names, recipe, seed, update, micro),
        timesteps=torch.cat([torch.randint(0, STEPS, (1,), generator=generator(seed, "timestep", *n)) for n in names]),
        captions=[
            draw_caption(image["caption"], settings, python_random(seed, "caption", *name))
            for image, name in zip(images, names, strict=True)
        ],
        sizes=size_ids(
            [image["size"] for image in images],
            [_crop(image, flip) for image, flip in zip(images, flips, strict=True)],
            [image["bucket"] for image in images],
        ),
    )


def held_out_count(trained: Data, held_back: Data | None, recipe: Mapping[str, Any]) -> int:
    """How many micro-batches the held-out loss is of: all of what is held back, or a few of what is trained on."""
    most = recipe.get("max_validation_steps")
    if held_back is None:
        return most or HELD_OUT_BATCHES
    all_of_it = batches_per_epoch(held_back.images, recipe["train_batch_size"])
    return min(most, all_of_it) if most else all_of_it


def held_out_batches(
    data: Data, recipe: Mapping[str, Any], seed: int, number: int = HELD_OUT_BATCHES
) -> list[MicroBatch]:
    """A `number` of micro-batches from streams of their own, always the same, on which a training is measured, never trained.

    Their timesteps are spread evenly over all 1000, so that few samples tell the mean loss.
    """
    seed = stream_seed(seed, "held_out")
    dealt = islice(micro_batches(data.images, recipe["train_batch_size"], seed), number)
    batches = [micro_batch(data, recipe, seed, epoch, samples, 0, n) for n, (epoch, samples) in enumerate(dealt)]
    count = sum(len(batch.captions) for batch in batches)
    offset = python_random(seed, "timesteps").random()
    spread = torch.tensor([int((number + offset) / count * STEPS) for number in range(count)])
    parts = spread.split([len(batch.captions) for batch in batches])
    return [
        MicroBatch(batch.latents, batch.noise, timesteps, batch.captions, batch.sizes)
        for batch, timesteps in zip(batches, parts, strict=True)
    ]


def _crop(image: Mapping[str, Any], flip: bool) -> tuple[int, int]:
    """(left, top) of the crop in the resized picture, or in its mirror image."""
    left, top = image["crop"]
    return (image["resized"][0] - image["bucket"][0] - left, top) if flip else (left, top)
