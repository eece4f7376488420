"""What the stages base and train declare: keys without pictures or saved steps, and which snapshots are wanted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabuild.components import COMPONENTS_FILE, folder_digests
from lorabuild.errors import JobError
from lorabuild.stage import Artifact, Component, Job
from lorabuild.stages.base import FILES
from lorabuild.stages.base import STAGE as BASE
from lorabuild.stages.train import STAGE as TRAIN
from lorabuild.workspace import Workspace

RECIPE: dict[str, Any] = {
    "network_dim": 8,
    "network_args": {"conv_dim": 4},
    "unet_lr": 1e-3,
    "learning_rate": 1e-4,
    "max_train_steps": 16,
    "save_every_n_steps": 5,
    "gradient_checkpointing": True,
    "seed": 1,
}


def repository(resize: Any = None, variants: dict[str, Any] | None = None, **recipe: Any) -> Any:
    root = Path("/repository")
    settings = {
        "project": {"base": "tiny", "source": None},
        "dataset": {"subset": []},
        "recipe": RECIPE | recipe,
        "resize": resize,
    }
    others = {name: settings | {"resize": table} for name, table in (variants or {}).items()}
    manifest = root / "projects/ember/lora.toml"
    project = SimpleNamespace(name="ember", settings=settings, variants=others, swept={}, manifest=manifest)
    bases = {"tiny": {"builtin": "tiny-sdxl"}, "other": {"builtin": "tiny-sdxl"}}
    return SimpleNamespace(root=root, projects={"ember": project}, bases=bases, used_bases=["tiny"])


def train(*args: Any, **kwargs: Any) -> Job:
    (job,) = TRAIN.jobs(repository(*args, **kwargs))
    return job


def test_the_end_of_each_phase_is_a_snapshot():
    phases = [{"max_train_steps": steps} for steps in (4, 3, 9)]
    assert train(phases=phases).snapshots == ["step/4", "step/5", "step/7", "step/10", "step/15", "step/16"]
    assert train(phases=phases, save_every_n_steps=None).snapshots == ["step/4", "step/7", "step/16"]


def test_what_shapes_a_training_is_in_its_key_and_nothing_else():
    job = train()
    recipe = {"network_dim": 8, "network_args": {"conv_dim": 4}, "unet_lr": 1e-3, "max_train_steps": 16, "seed": 1}
    assert job.params == {"recipe": recipe, "base": {"prediction_type": "epsilon"}}
    watch = {"folder": str(Path("/repository/build/ember/logs"))}
    saved = {"save_every_n_steps": 5, "resized": []}
    assert job.options == {"gradient_checkpointing": True, "saved": saved, "watch": watch}
    assert job.outputs == ["weights", "log", "facts.json"]
    assert job.inputs["dataset"] == Artifact("dataset:ember", "dataset.json")
    assert job.inputs["latents"] == Artifact("latents:ember", "latents")
    components = {role: item.name for role, item in job.inputs.items() if isinstance(item, Component)}
    assert components == {name: name for name in ("unet", "te1", "te2", "tokenizer1", "tokenizer2")}


def test_wanted_are_the_steps_saved_and_those_that_are_resized():
    assert train().snapshots == ["step/5", "step/10", "step/15"]
    assert train(save_every_n_steps=None).snapshots == []
    assert train(save_every_n_steps=8).snapshots == ["step/8", "step/16"]
    assert train({"step": "last"}, save_every_n_steps=None).snapshots == []
    several = train({"step": 7}, {"mini": {"step": 12}, "maxi": None}, save_every_n_steps=6)
    assert several.snapshots == ["step/6", "step/7", "step/12"]


def rows(*counts: int) -> bytes:
    """dataset.json with so many images in each bucket."""
    images = [{"bucket": [64, 64 + number], "repeats": 1} for number, count in enumerate(counts) for _ in range(count)]
    return json.dumps({"images": images}).encode()


def wanted(*counts: int, resize: Any = None, **recipe: Any) -> list[str]:
    recipe = {"save_every_n_steps": None, "train_batch_size": 2, "gradient_accumulation_steps": 1} | recipe
    return list(TRAIN.snapshots(train(resize, **recipe), lambda role: {"dataset": rows(*counts)}[role]))


def test_epochs_become_steps_by_the_batches_of_the_data_set():
    """Five images in one bucket and one in another, two a batch: four batches."""
    assert wanted(5, 1, save_every_n_epochs=1) == ["step/4", "step/8", "step/12"]
    assert wanted(5, 1, save_every_n_epochs=2) == ["step/8"]
    assert wanted(5, 1, save_every_n_epochs=1, gradient_accumulation_steps=3) == [
        f"step/{step}" for step in (2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15)
    ]
    by_epochs = {"max_train_epochs": 3, "max_train_steps": None}
    assert wanted(5, 1, **by_epochs, save_every_n_epochs=1) == ["step/4", "step/8"]
    assert wanted(5, 1, **by_epochs, save_every_n_steps=6) == ["step/6", "step/12"]
    assert wanted(5, 1, **by_epochs, resize={"step": 12}) == ["step/12"]


def test_before_the_data_set_is_known_a_resized_step_is_wanted_all_the_same():
    assert train({"step": 7}, save_every_n_steps=None, save_every_n_epochs=1).snapshots == ["step/7"]
    both = train({"step": 7}, save_every_n_epochs=1).snapshots  # those by steps are known, too
    assert both == ["step/5", "step/7", "step/10", "step/15"]
    assert train({"step": 7}, max_train_epochs=1, max_train_steps=None).snapshots == ["step/7"]


def test_a_step_that_the_epochs_do_not_come_to_is_one_line():
    with pytest.raises(
        JobError, match=r"^resize.step: 13: the training ends at step 12 \(recipe.max_train_epochs: 3, of 4"
    ):
        wanted(5, 1, max_train_epochs=3, max_train_steps=None, resize={"step": 13})


def test_snapshots_that_hang_on_steps_alone_do_not_read_the_data_set():
    assert TRAIN.snapshots(train(), lambda role: pytest.fail("read")) == ["step/5", "step/10", "step/15"]


def test_a_project_without_a_data_set_trains_nothing():
    other = repository()
    other.projects["ember"].settings["dataset"] = None
    assert list(TRAIN.jobs(other)) == []


def test_a_builtin_base_is_made_if_a_project_uses_it():
    (job,) = BASE.jobs(repository())
    assert (job.name, job.params, job.inputs) == ("base:tiny", {"base": {"builtin": "tiny-sdxl"}}, {})
    assert job.outputs == [*FILES, COMPONENTS_FILE]


def test_the_job_of_a_base_writes_what_it_declares(tmp_path: Path):
    (job,) = BASE.jobs(repository())
    workspace = Workspace(staging=tmp_path / "base", scratch=tmp_path / "scratch", pieces=tmp_path / "pieces")
    BASE.run(job, workspace, lambda done, total, text: None)
    written = {str(path.relative_to(tmp_path / "base")) for path in (tmp_path / "base").rglob("*") if path.is_file()}
    assert written == set(job.outputs)
    assert json.loads((tmp_path / "base" / COMPONENTS_FILE).read_text()) == folder_digests(tmp_path / "base")
