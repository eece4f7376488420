"""The learning rate at each update: sd-scripts' sequences, phases, and classes of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabuild.errors import JobError
from lorabuild.manifest.tables.recipe import RecipeTable
from lorabuild.nn.schedule import Rates, learning_rate_factor
from lorabuild.training.phases import phase_at, phase_ends, phases

GOLDENS = json.loads((Path(__file__).parent / "goldens/schedules.json").read_text())["schedules"]
RATES = {"learning_rate": 3e-4, "unet_lr": 3e-4, "text_encoder_lr": 1e-4}


def settings(**recipe: Any) -> dict[str, Any]:
    """A recipe as a training gets it."""
    return RecipeTable.model_validate(recipe).model_dump()


def factors(recipe: dict[str, Any], count: int) -> list[float]:
    return [learning_rate_factor(recipe, update) for update in range(count)]


def rates(recipe: dict[str, Any], of_phase: list[list[float]], **options: Any) -> Rates:
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in of_phase[0]]
    return Rates(recipe, of_phase, torch.optim.AdamW(parameters, **options))


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: " ".join(map(str, golden["args"].values())))
def test_rates_are_those_of_sd_scripts(golden: dict[str, Any]):
    recipe = settings(max_train_steps=80, **RATES, **golden["args"])
    for one in (
        recipe,
        {"max_train_steps": 80, **RATES, **golden["args"], "lr_scheduler_args": recipe["lr_scheduler_args"]},
    ):
        found = factors(one, 81)
        assert [3e-4 * factor for factor in found] == pytest.approx(golden["unet"], rel=1e-8, abs=1e-12)
        others = [1e-4 * found[update] for update in (0, 40, 80)]
        assert others == pytest.approx(golden["textencoder_at_1_41_81"], rel=1e-8, abs=1e-12)


def test_the_rate_of_the_ten_minute_recipe_ends_at_a_seventh():
    recipe = {"lr_scheduler": "cosine", "lr_scheduler_args": {"num_cycles": 0.375}, "max_train_steps": 80}
    assert learning_rate_factor(recipe, 80) == pytest.approx(0.146447, abs=1e-6)


def test_a_training_that_is_all_warm_up_has_a_rate_to_its_end():
    recipe = {"lr_scheduler": "cosine", "lr_warmup_steps": 8, "max_train_steps": 8}
    assert [learning_rate_factor(recipe, update) for update in (0, 4, 8)] == [0, 0.5, 1]


def test_a_warm_up_of_a_constant_rate_and_an_unknown_scheduler_are_refused():
    with pytest.raises(JobError, match="no warm-up"):
        learning_rate_factor({"lr_scheduler": "constant", "lr_warmup_steps": 5, "max_train_steps": 80}, 0)
    with pytest.raises(JobError, match="cosin"):
        learning_rate_factor({"lr_scheduler": "cosin", "max_train_steps": 80}, 0)


def test_piecewise_constant_is_diffusers():
    from diffusers.optimization import get_piecewise_constant_schedule

    rules = "1:10,0.5:4,0.1:20,0.01"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_piecewise_constant_schedule(optimizer, rules)
    theirs = []
    for _ in range(30):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    recipe = settings(lr_scheduler="piecewise_constant", lr_scheduler_args={"step_rules": rules}, max_train_steps=30)
    assert factors(recipe, 30) == theirs


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_the_other_shapes_of_warmup_stable_decay_are_transformers(shape: str):
    from transformers.optimization import get_wsd_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    args = {"warmup_type": shape, "decay_type": shape, "min_lr_ratio": 0.1}
    scheduler = get_wsd_schedule(optimizer, 5, 7, num_training_steps=20, **args)
    theirs = []
    for _ in range(22):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = settings(
        lr_scheduler="warmup_stable_decay",
        lr_scheduler_args=args,
        lr_warmup_steps="25%",
        lr_decay_steps=0.35,
        max_train_steps=20,
    )
    assert factors(found, 22) == pytest.approx(theirs, rel=1e-12)


def test_fractions_are_of_the_rate_that_is_used_where_no_other_is_set():
    """sd-scripts takes its own default of 2e-6 then, and ends at a twentieth of the rate."""
    recipe = settings(lr_scheduler="polynomial", max_train_steps=10, unet_lr=1e-3, text_encoder_lr=1e-4)
    assert recipe["lr_scheduler_args"]["lr_init"] == 1e-3
    assert learning_rate_factor(recipe, 10) == pytest.approx(1e-4)


def test_phases_run_one_after_another():
    recipe = settings(
        unet_lr=1.0,
        lr_scheduler="cosine",
        lr_scheduler_args={"num_cycles": 0.375},
        phases=[
            {"max_train_steps": 4, "lr_scheduler": "linear", "lr_warmup_steps": 0.5},
            {"max_train_steps": 8, "unet_lr": 0.5},
            {"max_train_steps": 2, "lr_scheduler": "constant", "text_encoder_lr": 0},
        ],
    )
    assert recipe["max_train_steps"] == 14
    assert phase_ends(recipe) == [4, 12, 14]
    assert [phase_at(recipe, update) for update in (0, 3, 4, 11, 12, 13, 14)] == [
        (0, 0), (0, 3), (1, 0), (1, 7), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip
    cosine = {"lr_scheduler": "cosine", "lr_scheduler_args": {"num_cycles": 0.375}, "max_train_steps": 8}
    assert factors(recipe, 14) == [0, 0.5, 1, 0.5, *factors(cosine, 8), 1, 1]
    found = rates(recipe, [[1.0, 2.0], [0.5, 2.0], [1.0, 0.0]])
    assert [one["lr"] for one in found.at(4)] == [0.5, 2]
    assert [one["lr"] for one in found.at(13)] == [1, 0]


def test_a_training_without_phases_has_one_and_no_ends():
    recipe = settings(max_train_steps=3)
    assert phase_ends(recipe) == []
    assert phases(recipe) == [recipe]
    assert phase_at(recipe, 2) == (0, 2)


def test_a_class_is_stepped_from_the_start_of_its_phase():
    recipe = settings(
        phases=[
            {"max_train_steps": 3},
            {"max_train_steps": 5, "lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=2", "gamma=0.5"]},
        ]
    )
    found = rates(recipe, [[1.0, 4.0], [1.0, 4.0]])
    assert [[one["lr"] for one in found.at(update)] for update in range(8)] == [
        [1, 4], [1, 4], [1, 4], [1, 4], [1, 4], [0.5, 2], [0.5, 2], [0.25, 1],
    ]  # fmt: skip
    assert [[one["lr"] for one in found.at(update)] for update in (7, 5)] == [[0.25, 1], [0.5, 2]], "it is a function"


def test_what_else_a_class_changes_is_taken_over():
    args = {"max_lr": 0.1, "total_steps": 10}
    recipe = settings(lr_scheduler_type="OneCycleLR", lr_scheduler_args=args, max_train_steps=10)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [parameter], "name": "unet"}])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, **args)
    theirs = []
    for _ in range(10):
        theirs.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
        optimizer.step()
        scheduler.step()
    fresh = torch.optim.AdamW([{"params": [parameter], "name": "unet"}])
    found = Rates(recipe, [[1e-3]], fresh)
    assert [(found.at(update)[0]["lr"], found.at(update)[0]["betas"]) for update in range(10)] == theirs
    assert fresh.param_groups[0]["lr"] == 1e-3 and "max_lr" not in found.at(0)[0]


@pytest.mark.parametrize(
    ("path", "args", "said"),
    [
        ("StepLRR", {}, "no such class"),
        ("no.such.Class", {}, "no such class"),
        ("StepLR", {"step": 2}, "step"),
        ("ReduceLROnPlateau", {}, "metrics"),
    ],
)
def test_a_class_that_cannot_be_used_is_one_line(path: str, args: dict[str, Any], said: str):
    recipe = settings(lr_scheduler_type=path, lr_scheduler_args=args, max_train_steps=4)
    with pytest.raises(JobError, match=f"lr_scheduler_type.*{said}") as error:
        rates(recipe, [[1.0]])
    assert "\n" not in str(error.value)
