"""Training on a data set with all that folders and captions may ask for: it counts, and a resumed one ends the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_base
import torch
from tiny_base import RECIPE, outputs, training

from lorabuild.errors import Interrupted
from lorabuild.nn.adapter import Shape, adapted
from lorabuild.nn.batches import Data, micro_batch
from lorabuild.nn.objective import Objective
from lorabuild.nn.trainer import Training, _Loop
from lorabuild.stages.train import STAGE

SETTINGS = {
    "max_token_length": 150,
    "caption_dropout_rate": 0.3,
    "caption_tag_dropout_rate": 0.3,
    "token_warmup_step": 0.5,
    "caption_prefix": "(a fox:1.2)",
    "enable_wildcard": True,
    "crop_conditioning": "peer",
}
ROWS: dict[int, dict[str, Any]] = {
    0: {"mask": "m" * 32},
    2: {"is_reg": True, "settings": {"flip_aug": False, "caption_dropout_rate": 0.0}},
    4: {"caption": "ember, {red|blue}\nred"},
}
RECIPE_OF_DATA = {"weighted_captions": True, "prior_loss_weight": 0.5, "max_train_steps": 2}


@pytest.fixture(autouse=True)
def rich_data(monkeypatch: pytest.MonkeyPatch):
    made, latents = tiny_base.dataset(), tiny_base.latents()
    made["settings"] = made["settings"] | SETTINGS
    for number, row in ROWS.items():
        made["images"][number] |= row
    latents["m" * 32 + ".64x64.mask"] = torch.linspace(0, 1, 64).view(8, 8)
    monkeypatch.setattr(tiny_base, "dataset", lambda: made)
    monkeypatch.setattr(tiny_base, "latents", lambda: latents)


def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path):
    recipe = RECIPE_OF_DATA | {"gradient_accumulation_steps": 2}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir()
    stopped.mkdir()
    job, workspace = training(straight, recipe=recipe)
    STAGE.run(job, workspace, lambda done, total, text: None)
    job, workspace = training(stopped, recipe=recipe)
    said = iter([False] * 3)
    workspace.stopping = lambda: next(said, True)
    with pytest.raises(Interrupted):
        STAGE.run(job, workspace, lambda done, total, text: None)
    job, workspace = training(stopped, recipe=recipe)
    STAGE.run(job, workspace, lambda done, total, text: None)
    assert workspace.notes == {"resumed_at": 1}
    assert outputs(stopped) == outputs(straight)


@torch.no_grad()
def test_masks_and_weights_scale_the_loss():
    base, recipe = tiny_base.tiny_base(), RECIPE | RECIPE_OF_DATA
    data = Data(tiny_base.dataset(), tiny_base.latents().__getitem__)
    batch = micro_batch(data, recipe, 7, 0, [(0, 0), (1, 0), (2, 0)], 0, 0)
    assert batch.weights.tolist() == [1, 1, 0.5]
    with adapted(base, Shape.of(recipe), 7, ("te", "unet")) as adapter:
        loop, objective = _Loop(Training(base, adapter, data, recipe)), Objective.of(recipe)
        plain = loop._losses(replace(batch, masks=None, weights=None), objective)
        counted = loop._losses(batch, objective)
    ratio = (counted / plain).tolist()
    assert ratio[1:] == pytest.approx([1, 0.5]) and 0.3 < ratio[0] < 0.7
