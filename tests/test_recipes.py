"""The recipes of this repository: whole, each key explained, and trained on the embedded base within minutes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from world import REPOSITORY, World

from lorabuild.manifest import load
from lorabuild.nn.applied import applied
from lorabuild.nn.base import Base, load_text_encoders, load_tokenizers, load_unet
from lorabuild.nn.batches import Data, held_out_batches
from lorabuild.nn.latents import open_latents
from lorabuild.nn.objective import Objective, plain
from lorabuild.nn.text import text_conditions
from lorabuild.session import opened

RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.toml"))
MANIFEST = """\
extends = ["{recipe}", "tiny"]
[project]
base = "tiny"
trigger = "ember"
[[dataset.subset]]
image_dir = "images"
[chop]
keep = ["TE", "OUT*", "MID*"]
"""


def world_of(root: Path, recipe: str) -> World:
    """The first example's pictures, trained by a recipe."""
    world = World(root)
    shutil.copytree(REPOSITORY / "recipes", root / "recipes")
    shutil.copytree(REPOSITORY / "projects/ember/images", root / "projects/ember/images")
    world.write("projects/ember/lora.toml", MANIFEST.format(recipe=recipe))
    return world


def recipe_alone(root: Path, recipe: str) -> dict[str, Any]:
    """The settings of a recipe without `tiny` over it."""
    world = world_of(root, recipe)
    world.write("projects/ember/lora.toml", MANIFEST.format(recipe=recipe).replace(', "tiny"', ""))
    return load(root).projects["ember"].settings["recipe"]


@pytest.mark.parametrize("name", RECIPES)
def test_each_key_has_a_word_of_explanation(name: str):
    lines = (REPOSITORY / f"recipes/{name}.toml").read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if re.match(r"\w+ = ", line):
            assert "  # " in line or before.startswith("# "), line


def test_the_guides_recipes_are_as_the_guides_have_them(tmp_path: Path):
    schnell, pony = (recipe_alone(tmp_path / name, name) for name in ("schnell", "pony"))
    both = {"network_dim": 8, "network_alpha": 4, "train_batch_size": 8, "gradient_accumulation_steps": 6}
    assert schnell | both == schnell and pony | both == pony
    assert (schnell["max_train_steps"], pony["max_train_steps"]) == (80, 400)
    assert (schnell["optimizer_type"], pony["optimizer_type"]) == ("ClybW", "AdamW")
    assert (schnell["unet_lr"], schnell["text_encoder_lr"]) == (3e-4, 1e-4)
    assert (pony["unet_lr"], pony["text_encoder_lr"]) == (1e-4, 1e-4)
    assert schnell["lr_scheduler_args"]["num_cycles"] == 0.375 and pony["scale_weight_norms"] == 1
    for recipe in (schnell, pony):
        assert recipe["network_args"]["conv_dim"] == 256 and recipe["network_args"]["conv_alpha"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["schnell", "pony", "8gb"])
def test_a_recipe_learns_on_tiny_and_its_chop_stands_between_base_and_full(tmp_path: Path, recipe: str):
    world = world_of(tmp_path / "repository", recipe)
    assert world.doit().code == 0
    build = world.root / "build/ember"
    told = [json.loads(line) for line in (build / "train.jsonl").read_text().splitlines()]
    before, after = (line["loss"] for line in told if line["event"] == "held_out" and line["when"] != "during")
    losses = held_out(world, [None, build / "ember-chopped.safetensors", build / "ember.safetensors"])
    base, chopped, full = losses
    assert base == pytest.approx(before, abs=1e-4) and full == pytest.approx(after, abs=1e-2)
    assert full < chopped < base


@torch.no_grad()
def held_out(world: World, files: list[Path | None]) -> list[float]:
    """The held-out loss of the base, and with each file on it, by the measure that training uses."""
    with opened(world.root, writing=False, building=False) as engine:
        job = engine.jobs["train:ember"]
        blobs = {
            role: engine.store.blob(engine.assess(job.inputs[role].job).outputs[job.inputs[role].role].digest)
            for role in ("dataset", "latents")
        }
    folder = world.root / ".lorabuild/base/tiny"
    base = Base(load_unet(folder, torch.float32), *load_text_encoders(folder, torch.float32), *load_tokenizers(folder))
    recipe = job.params["recipe"]
    data = Data(json.loads(blobs["dataset"].read_bytes()), open_latents(blobs["latents"], "cpu"))
    objective = Objective.of(plain(recipe), "epsilon", "cpu")
    found = []
    for file in files:
        with applied(base, file):
            losses = []
            for batch in held_out_batches(data, recipe, recipe["seed"]):
                noisy, target = objective.noisy(batch)
                hidden, pooled = text_conditions(base, batch.captions, data.dataset["settings"])
                conditions = {"text_embeds": pooled, "time_ids": batch.sizes}
                prediction = base.unet(noisy, batch.timesteps, hidden, added_cond_kwargs=conditions).sample
                losses.append(objective.losses(prediction, target, batch))
        found.append(torch.cat(losses).mean().item())
    return found
