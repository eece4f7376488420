"""Trainings with each algorithm: it learns, and one that was stopped ends as an undisturbed one does, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_base import outputs, training

from lorabuild.errors import Interrupted
from lorabuild.stages.train import STAGE

# Algorithm -> rank and learning rate with which three updates show
LEARNS = {
    "locon": (4, 5e-3),
    "dylora": (4, 5e-3),
    "loha": (4, 1e-2),
    "lokr": (4, 1e-2),
    "full": (4, 1e-3),
    "ia3": (4, 3e-2),
    "diag-oft": (4, 3e-3),
    "boft": (16, 2e-3),
    "glora": (4, 3e-3),
    "norms alone": (4, 5e-3),
}
QUICK = ("full", "ia3")


def recipe(algo: str, dim: int, rate: float, **more: Any) -> dict[str, Any]:
    args = {"algo": algo, "preset": "full", "conv_dim": dim, "conv_alpha": 1.0, **more}
    if algo == "norms alone":
        args |= {"algo": "ia3", "preset": "unet-convblock-only", "train_norm": True}
    return {"network_dim": dim, "network_args": args, "unet_lr": rate, "text_encoder_lr": 0.0, "max_train_steps": 3}


def run(folder: Path, settings: dict[str, Any], stop_after: int | None = None) -> dict[str, bytes]:
    """What a training writes; with `stop_after` it is stopped once, after so many micro-batches, and taken up again."""
    folder.mkdir(exist_ok=True)
    if stop_after is not None:
        job, workspace = training(folder, recipe=settings)
        said = iter([False] * stop_after)
        workspace.stopping = lambda: next(said, True)
        with pytest.raises(Interrupted):
            STAGE.run(job, workspace, lambda done, total, text: None)
    job, workspace = training(folder, recipe=settings)
    STAGE.run(job, workspace, lambda done, total, text: None)
    assert ("resumed_at" in workspace.notes) == (stop_after is not None)
    return outputs(folder)


def learns(folder: Path, algo: str) -> None:
    facts = json.loads(run(folder, recipe(algo, *LEARNS[algo]))["facts.json"])
    assert facts["loss_after"] < 0.99 * facts["loss_before"]


@pytest.mark.parametrize("algo", QUICK)
def test_it_learns(tmp_path: Path, algo: str):
    learns(tmp_path, algo)


@pytest.mark.slow
@pytest.mark.parametrize("algo", [algo for algo in LEARNS if algo not in QUICK])
def test_each_algorithm_learns(tmp_path: Path, algo: str):
    learns(tmp_path, algo)


DROPS = {"dropout": 0.1, "rank_dropout": 0.2, "module_dropout": 0.1}
TAKEN_UP = {
    "locon, dropouts, limited norms, LoRA+": ("locon", {**DROPS, "loraplus_lr_ratio": 4.0}),
    "dylora": ("dylora", {"block_size": 2}),
    "lokr, DoRA, scalar, norms": ("lokr", {**DROPS, "dora_wd": True, "use_scalar": True, "train_norm": True}),
}


@pytest.mark.parametrize(
    "kind", [next(iter(TAKEN_UP)), *(pytest.param(k, marks=pytest.mark.slow) for k in [*TAKEN_UP][1:])]
)
def test_a_training_that_is_taken_up_ends_with_the_same_bytes(tmp_path: Path, kind: str):
    algo, options = TAKEN_UP[kind]
    settings = recipe(algo, 4, 5e-2, **options) | {"gradient_accumulation_steps": 2, "scale_weight_norms": 0.02}
    settings |= {"text_encoder_lr": [1e-2, 0.0], "max_train_steps": 2, "max_validation_steps": 1}
    straight = run(tmp_path / "straight", settings)
    assert run(tmp_path / "stopped", settings, stop_after=3) == straight
    log = [json.loads(line) for line in straight["log"].splitlines()]
    limited = [record["max_norm"] for record in log if record["event"] == "step"]
    if algo != "dylora":
        assert any(one["keys_scaled"] for one in limited)
        assert all(one["average_key_norm"] <= one["max_key_norm"] <= 0.02 * 1.0001 for one in limited)
    (tmp_path / "w").write_bytes(straight["weights"])
    names = load_file(tmp_path / "w")
    assert any(name.startswith("lora_te1_") for name in names), "trained"
    assert not any(name.startswith("lora_te2_") for name in names), "a rate of 0: no modules, nothing in the file"
