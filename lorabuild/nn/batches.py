"""Make micro-batches of a data set and its latents: what a sample sees follows from the seed and its name alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lorabuild.data.buckets import peer_crop
from lorabuild.data.captions import draw_caption
from lorabuild.data.images import MASKED, latent_name, mask_name
from lorabuild.nn.noise import batch_noise, draw_timesteps, perturbation
from lorabuild.nn.objective import LATENT_SCALE, STEPS, plain
from lorabuild.nn.text import size_ids
from lorabuild.streams import python_random, stream_seed
from lorabuild.training.order import Sample, batches_per_epoch, micro_batches

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
    """B samples of one bucket. Latents are scaled; the noise is not yet added.

    Made on the CPU, but for latents and masks that are kept on the training's device; `on` brings all of it there.
    """

    latents: Tensor  # [B, 4, h, w]
    noise: Tensor  # [B, 4, h, w]
    timesteps: Tensor  # [B]
    captions: list[str]
    sizes: Tensor  # [B, 6]
    masks: Tensor | None = None  # [B, 1, h, w], 0 to 1: how much of each pixel's error counts
    weights: Tensor | None = None  # [B] of the samples' losses
    perturbation: Tensor | None = None  # [B, 4, h, w], added to the noise of the input alone
    ids: Tensor | None = None  # [B, 2, n * 77] token ids of the captions, where they were made ahead: see nn/text.py
    emphasis: Tensor | None = None  # [B, 2, n * 77] the weights of these tokens, if captions have any
    hidden: Tensor | None = None  # [B, T, C] what the U-Net is conditioned on, where text encoders are frozen, and
    pooled: Tensor | None = None  # [B, C2]: see nn/text_ahead.py

    def on(self, device: str) -> MicroBatch:
        """On the training's device. From pinned memory, so that the copies wait for nothing and nothing waits for them."""
        if device == "cpu":
            return self
        tensors = {name: one for name, one in vars(self).items() if isinstance(one, Tensor)}
        return replace(self, **{name: _sent(one, device) for name, one in tensors.items()})


def micro_batch(
    data: Data, recipe: Mapping[str, Any], seed: int, epoch: int, samples: Sequence[Sample], update: int, micro: int
) -> MicroBatch:
    """Micro-batch `micro` of update `update` (from 0): `samples` of `epoch`, as `lorabuild.training.order` deals them.

    Flip, caption, timestep and white noise of a sample come from streams keyed by (epoch, picture, repeat), whatever
    else is in its batch. The size conditioning tells the crop that was made, mirrored with the picture, unless
    `crop_conditioning` wants the peer's.
    """
    images = [data.images[index] for index, _ in samples]
    names = _names(data, epoch, samples)
    settings = _settings(data, samples)
    flips = [
        said["flip_aug"] and python_random(seed, "flip", *name).random() < 0.5
        for said, name in zip(settings, names, strict=True)
    ]
    crop = _peer_crop if data.dataset["settings"].get("crop_conditioning") == "peer" else _crop
    prior = recipe.get("prior_loss_weight", 1.0)
    encoded = torch.stack([data.latents(latent_name(i, flip)) for i, flip in zip(images, flips, strict=True)])
    latents = encoded * LATENT_SCALE
    return MicroBatch(
        latents=latents,
        noise=batch_noise(latents, names, recipe, seed, update, micro),
        timesteps=draw_timesteps(names, recipe, seed),
        captions=captions_of(data, recipe, seed, epoch, samples, update),
        sizes=size_ids(
            [image["size"] for image in images],
            [crop(image, flip) for image, flip in zip(images, flips, strict=True)],
            [image["bucket"] for image in images],
        ),
        weights=torch.tensor([prior if image.get("is_reg") else 1.0 for image in images]),
        masks=_masks(data, images, flips, latents),
        perturbation=perturbation(latents.shape, names, recipe, seed, update, micro),
    )


def captions_of(
    data: Data, recipe: Mapping[str, Any], seed: int, epoch: int, samples: Sequence[Sample], update: int
) -> list[str]:
    """The captions of a micro-batch of that update, as they are drawn for it."""
    updates = recipe.get("max_train_steps", 0)
    return [
        draw_caption(data.images[index]["caption"], said, python_random(seed, "caption", *name), epoch, update, updates)
        for (index, _), said, name in zip(samples, _settings(data, samples), _names(data, epoch, samples), strict=True)
    ]


def _names(data: Data, epoch: int, samples: Sequence[Sample]) -> list[tuple[int, str, int]]:
    """What the streams of each sample are keyed by: (epoch, picture, repeat)."""
    return [(epoch, data.images[index]["digest"], data.first_repeat[index] + repeat) for index, repeat in samples]


def _settings(data: Data, samples: Sequence[Sample]) -> list[Mapping[str, Any]]:
    """`[dataset]` as it is for each sample, its subset's own settings over it."""
    return [data.dataset["settings"] | data.images[index].get("settings", {}) for index, _ in samples]


def held_out_count(held_back: Data | None, recipe: Mapping[str, Any]) -> int:
    """How many micro-batches the held-out loss is of: all of what is held back, or a few of what is trained on."""
    most = recipe.get("max_validation_steps")
    if held_back is None:
        return most or HELD_OUT_BATCHES
    all_of_it = batches_per_epoch(held_back.images, recipe["train_batch_size"])
    return min(most, all_of_it) if most else all_of_it


def held_out_batches(
    data: Data, recipe: Mapping[str, Any], seed: int, most: int = HELD_OUT_BATCHES
) -> list[MicroBatch]:
    """So many micro-batches from streams of their own, always the same, on which a training is measured, never trained.

    Their timesteps are spread evenly over all 1000, so that few samples tell the mean loss. Their noise is white,
    and nothing is masked or weighted, whatever the recipe: so that recipes can be compared by their losses.
    """
    seed, recipe = stream_seed(seed, "held_out"), plain(recipe)
    dealt = islice(micro_batches(data.images, recipe["train_batch_size"], seed), most)
    batches = [micro_batch(data, recipe, seed, epoch, samples, 0, n) for n, (epoch, samples) in enumerate(dealt)]
    count = sum(len(batch.captions) for batch in batches)
    offset = python_random(seed, "timesteps").random()
    spread = torch.tensor([int((number + offset) / count * STEPS) for number in range(count)])
    parts = spread.split([len(batch.captions) for batch in batches])
    return [
        replace(batch, timesteps=timesteps, masks=None, weights=None)
        for batch, timesteps in zip(batches, parts, strict=True)
    ]


def _sent(tensor: Tensor, device: str) -> Tensor:
    if tensor.device.type != "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _masks(data: Data, images: Sequence[Mapping[str, Any]], flips: Sequence[bool], latents: Tensor) -> Tensor | None:
    """[B, 1, h, w] like `latents`; ones for an image without a mask, None if none of them has one."""
    if not any(MASKED in image for image in images):
        return None
    masks = []
    for image, flip in zip(images, flips, strict=True):
        mask = data.latents(mask_name(image)) if MASKED in image else torch.ones_like(latents[0, 0])
        masks.append(mask.flip(-1) if flip else mask)
    return torch.stack(masks)[:, None]


def _peer_crop(image: Mapping[str, Any], flip: bool) -> tuple[int, int]:
    """(left, top) that sd-scripts would tell."""
    return peer_crop(image["size"], image["bucket"], flip)


def _crop(image: Mapping[str, Any], flip: bool) -> tuple[int, int]:
    """(left, top) of the crop in the resized picture, or in its mirror image."""
    left, top = image["crop"]
    return (image["resized"][0] - image["bucket"][0] - left, top) if flip else (left, top)
