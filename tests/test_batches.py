"""Micro-batches: what a sample sees by the settings of its folder, whatever else is in the batch."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from tiny_base import RECIPE, dataset, latents

from lorabuild.nn.batches import Data, micro_batch
from lorabuild.training.order import batches_per_epoch, micro_batches

PLAIN = {"flip_aug": False, "shuffle_caption": False}


def data(changes: dict[int, dict[str, Any]] | None = None, **settings: Any) -> Data:
    """The data set of `tiny_base`, with other settings and other rows."""
    made = dataset()
    made["settings"] = {**made["settings"], **settings}
    for number, row in (changes or {}).items():
        made["images"][number] |= row
    known = latents()
    known["m" * 32 + ".64x64.mask"] = torch.arange(64.0).view(8, 8) / 64
    return Data(made, known.__getitem__)


def batch(data: Data, *indices: int, recipe: dict[str, Any] | None = None, epoch: int = 0, update: int = 0):
    return micro_batch(data, RECIPE | (recipe or {}), 7, epoch, [(index, 0) for index in indices], update, 0)


def test_a_folder_draws_flips_and_captions_by_its_own_settings():
    own = {"settings": {"flip_aug": False, "shuffle_caption": False, "caption_prefix": "a drawing of"}}
    made = data({2: own})
    for epoch in range(8):
        found = batch(made, 0, 2, epoch=epoch)
        assert found.captions[1] == "a drawing of ember, Red, sit, 2"
        torch.testing.assert_close(found.latents[1], batch(data(**PLAIN), 2).latents[0])
        assert found.captions[0] == batch(made, 0, epoch=epoch).captions[0], "and what is beside it does not count"
    assert len({batch(made, 0, epoch=epoch).captions[0] for epoch in range(8)}) > 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"caption_dropout_rate": 0.5, "caption_tag_dropout_rate": 0.5, "token_warmup_step": 3},
        {"enable_wildcard": True, "caption_dropout_every_n_epochs": 2, "secondary_separator": "Red"},
    ],
)
def test_an_epoch_is_exactly_once_and_a_sample_the_same_however_it_is_batched(settings: dict[str, Any]):
    made = data({3: {"is_reg": True, "repeats": 2}, 2: {"settings": {"keep_tokens": 2}}}, **settings)
    due = Counter(image["digest"] for image in made.images for _ in range(image["repeats"]))
    seen = {}
    for size in (1, 2, 3):
        dealt = islice(micro_batches(made.images, size, 7), batches_per_epoch(made.images, size))
        found: list[tuple] = []
        for epoch, samples in dealt:
            one = micro_batch(made, RECIPE | {"multires_noise_iterations": 0}, 7, epoch, samples, 1, 0)
            for number, (index, _) in enumerate(samples):
                drawn = (one.captions[number], one.timesteps[number].item(), one.noise[number].sum().item())
                found.append((made.images[index]["digest"], *drawn, one.sizes[number].tolist()))
        assert Counter(row[0] for row in found) == due
        seen[size] = sorted(map(str, found))
    assert seen[1] == seen[2] == seen[3]


def test_captions_are_dropped_by_epochs_and_grow_by_updates():
    made = data(**PLAIN, caption_dropout_every_n_epochs=2)
    assert [batch(made, 0, epoch=epoch).captions for epoch in range(4)] == [["ember, Red, sit, 0"], [""]] * 2
    made = data(**PLAIN, token_warmup_step=0.5, keep_tokens=0)
    grown = [batch(made, 0, update=update, recipe={"max_train_steps": 8}).captions[0] for update in (0, 2, 4)]
    assert grown == ["ember", "ember, Red", "ember, Red, sit, 0"]


def test_regularisation_images_weigh_as_the_recipe_says():
    made = data({1: {"is_reg": True}})
    assert batch(made, 0, 1).weights.tolist() == [1, 1]
    assert batch(made, 0, 1, recipe={"prior_loss_weight": 0.25}).weights.tolist() == [1, 0.25]


def test_masks_are_mirrored_with_their_picture_and_ones_where_there_is_none():
    assert batch(data(), 0, 1).masks is None
    made = data({0: {"mask": "m" * 32}})
    mask = made.latents("m" * 32 + ".64x64.mask")
    seen = set()
    for epoch in range(8):
        found = batch(made, 0, 2, epoch=epoch)
        assert found.masks.shape == (2, 1, 8, 8) and found.masks[1].eq(1).all()
        flipped = torch.allclose(found.latents[0] / 0.13025, made.latents("a" * 32 + ".64x64.flip"))
        assert torch.equal(found.masks[0, 0], mask.flip(-1) if flipped else mask)
        seen.add(flipped)
    assert seen == {True, False}


def test_the_peers_crop_is_told_where_it_is_asked_for():
    row = {"size": [255, 4000], "bucket": [64, 64], "resized": [64, 1004], "crop": [0, 470]}
    true, peer = (data({0: row}, **PLAIN, crop_conditioning=name) for name in ("true", "peer"))
    assert batch(true, 0).sizes.tolist() == [[4000, 255, 470, 0, 64, 64]]
    assert batch(peer, 0).sizes.tolist() == [[4000, 255, 0, 29, 64, 64]]
