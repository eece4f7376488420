"""A repository of one project with generated pictures, and what its stages make of it before training."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from lorabuild.data.vocabulary import END, START
from lorabuild.hashing import digest_file
from lorabuild.inputs import Resolver
from lorabuild.manifest import Repository, load
from lorabuild.manifest.keys import keys_of_class, result_keys
from lorabuild.nn.tokenizer import WORDS, vocabulary
from lorabuild.stage import Job, Stage
from lorabuild.stages.dataset import STAGE as DATASET
from lorabuild.stages.latents import STAGE as LATENTS
from lorabuild.training.order import batches_per_epoch
from lorabuild.training.updates import counted
from lorabuild.workspace import Progress, Workspace
from sdxl.models import VOCABULARY

RECIPES = Path(__file__).parents[2] / "recipes"
PROJECT, PICTURES, TRIGGER = "bench", "images", "ember"
IMAGES = 96  # at least: the size of a usual data set, and what a peer that begins an epoch anew begins it for
TAGS = 20  # of a caption
TILES = 32  # a picture is so many squares wide and high


@dataclass(frozen=True)
class Prepared:
    """What training reads. `latents_s` is what the stage `latents` took for `views`, pictures and mirror images."""

    recipe: Mapping[str, Any]
    execution: Mapping[str, Any]  # gradient_checkpointing and its like
    dataset: Mapping[str, Any]
    made: Mapping[str, Path]  # artifacts by role
    pictures: Path  # the folder above `1_bench`: kohya's layout
    views: int
    latents_s: float


def repository(
    root: Path, recipes: Sequence[str], recipe: Mapping[str, Any], dataset: Mapping[str, Any], least: int = IMAGES
) -> Repository:
    """A project that extends `recipes`, with keys of [recipe] and [dataset] over them, read by our own manifest code.

    Its pictures fill whole batches, all of one bucket. Raises ConfigError for what the schema does not take.
    """
    shutil.copytree(RECIPES, root / "recipes")
    folder = root / "projects" / PROJECT
    (folder / PICTURES / f"1_{PROJECT}").mkdir(parents=True)
    lines = [f"extends = {json.dumps(list(recipes))}", "[project]", 'base = "tiny"', f'trigger = "{TRIGGER}"']
    for table, values in {"recipe": recipe, "dataset": dataset}.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    lines += ["[[dataset.subset]]", f'image_dir = "{PICTURES}/1_{PROJECT}"', "num_repeats = 1"]
    (folder / "lora.toml").write_text("\n".join(lines) + "\n")
    found = load(root)
    settings = found.projects[PROJECT].settings
    batch = settings["recipe"]["train_batch_size"]
    _draw(folder / PICTURES / f"1_{PROJECT}", -(-least // batch) * batch, settings["dataset"]["resolution"])
    return found


def prepare(found: Repository, work: Path, device: str) -> Prepared:
    """Run the stages `dataset` and `latents` on the project; the VAE is warm already."""
    made: dict[str, Path] = {}
    seconds = {}
    clock = time.perf_counter if device == "cuda" else time.process_time
    for stage in (DATASET, LATENTS):
        start = clock()
        outputs, notes = run_stage(stage, found, work, made)
        seconds[stage.name] = clock() - start
        made |= outputs
    dataset = json.loads(made["dataset.json"].read_bytes())
    settings = found.projects[PROJECT].settings
    recipe = result_keys(settings, "recipe")
    recipe = counted(recipe, batches_per_epoch(dataset["images"], recipe["train_batch_size"]))
    return Prepared(
        recipe=recipe,
        execution=keys_of_class(settings, "recipe", "execution"),
        dataset=dataset,
        made=made,
        pictures=found.root / "projects" / PROJECT / PICTURES,
        views=notes["encoded"] * (2 if dataset["settings"]["flip_aug"] else 1),
        latents_s=seconds["latents"],
    )


def write_tokenizers(folder: Path) -> Path:
    """`tokenizer` and `tokenizer_2` in `folder`: CLIP's layout and size, the built-in base's words, the rest filled up."""
    tokens, merges = _whole_vocabulary()
    for name, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
        settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **special}
        files = {"vocab.json": tokens, "special_tokens_map.json": special, "tokenizer_config.json": settings}
        (folder / name).mkdir(parents=True)
        for file, value in files.items():
            (folder / name / file).write_text(json.dumps(value, ensure_ascii=False), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / name / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def _whole_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """As `vocabulary`, with as many merges as CLIP has: after its own, pairs of letters."""
    few, merges = vocabulary()
    letters = [token for token in few if len(token) == 1]
    pairs = [(a, b) for a in letters for b in letters if a + b not in few][: VOCABULARY - len(few)]
    names = [*(token for token in few if token not in (START, END)), *(a + b for a, b in pairs), START, END]
    return {token: number for number, token in enumerate(names)}, [*merges, *pairs]


def _draw(folder: Path, count: int, resolution: Sequence[int]) -> None:
    words = WORDS.split()
    for number in range(count):
        tiles = np.random.default_rng(number).integers(0, 256, (TILES, TILES, 3), np.uint8)
        Image.fromarray(tiles).resize(tuple(resolution), Image.Resampling.BILINEAR).save(folder / f"{number:03}.png")
        tags = random.Random(number).sample(words, TAGS)
        (folder / f"{number:03}.txt").write_text(", ".join([TRIGGER, *tags]))


def run_stage(
    stage: Stage,
    found: Repository,
    work: Path,
    made: Mapping[str, Path],
    change: Callable[[Job], Job] = lambda job: job,
    progress: Progress = lambda *_: None,
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Run the stage's job as a worker would: (outputs by role, notes). Artifacts are those `made` before.

    `work` is where a base would lie; in it are tokenizers alone. Its networks are warm, by their component's name.
    """
    (job,) = stage.jobs(found)
    resolver = Resolver(
        state=SimpleNamespace(digest=digest_file),
        artifact=lambda _, role: (digest_file(made[role]), made[role]),
        component=lambda _, name: (name, work),
    )
    inputs = resolver.resolve(job)
    folder = work / "stages" / stage.name
    (folder / "scratch").mkdir(parents=True)
    workspace = Workspace(
        staging=folder / "staging",
        scratch=folder / "scratch",
        pieces=folder / "pieces",
        paths={role: one.path for role, one in inputs.items() if one.path},
        digests={role: one.digest for role, one in inputs.items()},
        images={role: one.images for role, one in inputs.items()},
    )
    stage.run(change(replace(job, inputs={})), workspace, progress)
    return {role: workspace.output(role) for role in job.outputs}, workspace.notes
