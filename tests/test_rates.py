"""[recipe]'s optimizer, rates, schedule and phases: one spelling a meaning, and what does not go together is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from manifest_world import GOOD, Files
from test_schedule import settings

from lorabuild.hashing import canonical_json
from lorabuild.manifest.keys import result_keys


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def key(**recipe: Any) -> bytes:
    """What of a recipe is in a training's key."""
    return canonical_json(result_keys({"recipe": settings(**recipe)}, "recipe"))


COSINE = {"lr_scheduler": "cosine"}
PHASE = {"max_train_steps": 4, "lr_scheduler": "linear"}
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"optimizer_type": "adamw"}),
    ({}, {"optimizer_type": ""}),
    ({}, {"optimizer_args": {"betas": [0.9, 0.999], "weight_decay": 0.01, "amsgrad": False}}),
    ({}, {"optimizer_args": ["betas=(.9, .999)", "eps=1e-8", "weight_decay = 0.01", "amsgrad=false"]}),
    ({}, {"lr_warmup_steps": 0, "lr_decay_steps": 0, "lr_scheduler_type": "", "phases": []}),
    ({"optimizer_type": "clybw"}, {"optimizer_type": "ClybW", "optimizer_args": {"amp_fac": 2, "betas": [0.95, 0.95]}}),
    ({"optimizer_type": "Prodigy"}, {"optimizer_type": "prodigy", "unet_lr": 1, "text_encoder_lr": [1, 1]}),
    ({"optimizer_type": "nadam"}, {"optimizer_type": "torch.optim.NAdam"}),
    (COSINE, COSINE | {"lr_scheduler_args": {"num_cycles": 0.5}}),
    (COSINE | {"lr_scheduler_args": {"num_cycles": 0.375}}, COSINE | {"lr_scheduler_args": ["num_cycles=0.375"]}),
    (COSINE | {"lr_warmup_steps": 160}, COSINE | {"lr_warmup_steps": "10%"}),
    (
        {"lr_scheduler": "polynomial", "lr_scheduler_power": 2, "learning_rate": 1e-3},
        {"lr_scheduler": "polynomial", "lr_scheduler_args": {"power": 2.0}, "unet_lr": 1e-3, "text_encoder_lr": 1e-3},
    ),
    (
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.1, "lr_scheduler_num_cycles": 2},
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_args": {"min_lr_rate": 0.1, "num_cycles": 1.0}},
    ),
    ({"lr_scheduler_type": "StepLR"}, {"lr_scheduler_type": "torch.optim.lr_scheduler.StepLR"}),
    ({"text_encoder_lr": 1e-4}, {"text_encoder_lr": [1e-4, 1e-4]}),
    ({"phases": [PHASE]}, {"phases": [PHASE], "max_train_steps": 4, "lr_scheduler": "cosine"}),
    ({"phases": [PHASE]}, {"phases": [PHASE | {"unet_lr": 1e-4, "lr_scheduler_args": {}, "lr_warmup_steps": 0}]}),
    ({"phases": [{"max_train_steps": 4, "unet_lr": 1e-3}]}, {"unet_lr": 1e-3, "phases": [{"max_train_steps": 4}]}),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=lambda recipe: str(recipe)[:60])
def test_what_means_one_thing_has_one_key(one: dict[str, Any], other: dict[str, Any]):
    assert key(**one) == key(**other)


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer_args": {"amsgrad": True}},
        {"optimizer_type": "ClybW"},
        {"text_encoder_lr": [1e-4, 0]},
        {"lr_scheduler": "linear"},
        {"lr_scheduler_type": "StepLR", "lr_scheduler_args": {"step_size": 1}},
        {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 5},
        {"max_train_steps": 1600, "phases": [{"max_train_steps": 800}, {"max_train_steps": 800}]},
    ],
    ids=str,
)
def test_what_means_another_thing_has_another_key(recipe: dict[str, Any]):
    assert key(**recipe) != key()


def test_a_key_of_before_these_keys_is_as_it_was():
    """What was built with AdamW at a constant rate or by a cosine stays fresh."""
    recipe = settings(learning_rate=1e-4)
    assert recipe["optimizer_args"] == {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
    assert recipe["lr_scheduler_args"] == {"num_cycles": 0.5}
    assert not recipe.keys() & {"phases", "lr_scheduler_type", "lr_scheduler_power", "lr_decay_steps"}


MISTAKES: list[tuple[str, str]] = [
    ('optimizer_type = "FCompass"', '"FCompass" is not supported: no definition of it is published'),
    ("optimizer_type = 3", "expected text in quotes, got 3"),
    ("optimizer_args = { betsa = [0.9, 0.99] }", 'unknown key (did you mean "betas"?); AdamW has betas, eps'),
    ("optimizer_args = { betas = [0.9, 1.0] }", "optimizer_args.betas: expected less than 1, got 1"),
    ("optimizer_args = { betas = [0.9] }", "optimizer_args.betas: expected a list of 2 numbers"),
    ("optimizer_args = { eps = 0 }", "optimizer_args.eps: expected more than 0, got 0"),
    ('optimizer_args = ["eps=nan"]', 'optimizer_args.eps: expected a number, got "nan"'),
    ('optimizer_args = ["eps"]', 'expected a table, or a list of "key=value", got "eps" in it'),
    ("optimizer_args = 3", "optimizer_args: expected a table, got 3"),
    ("optimizer_args = { amsgrad = 1 }", "optimizer_args.amsgrad: expected true or false, got 1"),
    ('optimizer_type = "ClybW"\noptimizer_args = { normalization_mode = "half" }', 'expected "full" or "lerp"'),
    ('optimizer_type = "Prodigy"\nunet_lr = 1\ntext_encoder_lr = 0.5', "Prodigy has one rate for all parts"),
    ('optimizer_type = "Prodigy"\nnetwork_args = { loraplus_lr_ratio = 4 }', "LoRA+ does not go with it"),
    ('optimizer_type = "Adafactor"\nlr_scheduler = "cosine"', "Adafactor sets its own rates with relative_step"),
    ('lr_scheduler = "adafactor:1e-4"', '"adafactor" is for optimizer_type "Adafactor"'),
    ('lr_scheduler = "adafactor:fast"', 'expected a learning rate after "adafactor:"'),
    ('optimizer_type = "Adafactor"\nlr_scheduler = "adafactor:1e-4"\nlr_warmup_steps = 3', "has no warm-up"),
    ('optimizer_type = "AdamWScheduleFree"\nlr_scheduler = "linear"', "AdamWScheduleFree needs no schedule"),
    ("lr_warmup_steps = 3", 'lr_warmup_steps: lr_scheduler "constant" has no warm-up'),
    ("lr_scheduler_num_cycles = 3", 'lr_scheduler "constant" does not read it'),
    ('lr_scheduler = "cosine"\nlr_scheduler_num_cycles = 3', "does not read it: it reads lr_scheduler_args.num_cycles"),
    ('lr_scheduler = "cosine"\nlr_scheduler_args = { num_cycels = 3 }', 'unknown key (did you mean "num_cycles"?)'),
    ('lr_scheduler = "cosine"\nlr_scheduler_args = { num_cycles = 0 }', "num_cycles: expected more than 0, got 0"),
    ('lr_scheduler = "cosine_with_min_lr"', "needs lr_scheduler_min_lr_ratio"),
    ('lr_scheduler = "piecewise_constant"', "needs step_rules"),
    ('lr_scheduler = "piecewise_constant"\nlr_scheduler_args = { step_rules = "1:a,2" }', 'expected "factor:until'),
    ('lr_scheduler = "polynomial"\nlr_scheduler_power = 2\nlr_scheduler_args = { power = 2 }', "says it, too"),
    ('lr_scheduler = "cosine"\nlr_scheduler_type = "StepLR"', 'lr_scheduler is "cosine": set one of them'),
    ('lr_scheduler_type = "Step LR"', "expected a class like"),
    ('lr_scheduler_type = "StepLR"\nlr_warmup_steps = 3', "lr_scheduler_type does not read it"),
    ('lr_scheduler = "warmup_stable_decay"\nlr_decay_steps = 0.7\nlr_warmup_steps = "40%"', "are longer than 1600 steps"),
    ('lr_warmup_steps = "110%"', "expected a number of steps"),
    ("text_encoder_lr = [1e-4, 1e-4, 1e-4]", "expected a number, or a list of two"),
    ("text_encoder_lr = -1", "expected a number, or a list of two, 0 or more, got -1"),
    ("max_train_steps = 9\nphases = [{ max_train_steps = 4 }]", "the phases have 4 steps together, not 9"),
    ('phases = [{ max_train_steps = 4, lr_scheduler = "linea" }]', "recipe.phases.lr_scheduler: expected one of"),
    ("phases = [{ max_train_steps = 4, lr_warmup_steps = 2 }]", 'phases.lr_warmup_steps: lr_scheduler "constant" has no'),
    ("phases = [{ max_train_steps = 4, unet_lr = 0 }]\ntext_encoder_lr = 0", "both 0: nothing would be trained"),
    ("phases = [{ lr = 4 }]", "required, but missing: Updates of this phase."),
    ('lr_scheduler = "cosine"\nlr_warmup_steps = 4\nphases = [{ max_train_steps = 9 }]', "a warm-up is of one phase"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "said"), MISTAKES, ids=lambda text: text[:50])
def test_what_does_not_go_together_is_told_at_its_line(files: Files, recipe: str, said: str):
    files.write("projects/ember/lora.toml", f"{GOOD}[recipe]\n{recipe}\n")
    first = (f"{GOOD}[recipe]\n").count("\n")
    problems = files.mistakes()
    assert any(said in problem.message for problem in problems), problems
    assert all(problem.line >= first for problem in problems)


def test_a_later_layer_that_says_another_schedule_or_length_takes_the_place_of_what_was_said(files: Files):
    low = '[recipe]\nmax_train_steps = 80\nlr_scheduler = "cosine_with_restarts"\nlr_scheduler_num_cycles = 3\n'
    files.write("recipes/low.toml", low)
    head = f'extends = "low"\n{GOOD}[recipe]\n'

    def recipe(own: str) -> dict[str, Any]:
        return files.settings(head + own)["recipe"]

    assert recipe("")["lr_scheduler_args"] == {"num_cycles": 3}
    assert recipe('lr_scheduler = "cosine"')["lr_scheduler_args"] == {"num_cycles": 0.5}
    step = recipe('lr_scheduler_type = "StepLR"\nlr_scheduler_args = { step_size = 3 }')
    assert (step["lr_scheduler"], step["lr_scheduler_args"]) == ("constant", {"step_size": 3})
    phased = recipe('phases = [{ max_train_steps = 3, lr_scheduler = "linear" }, { max_train_steps = 4 }]')
    assert phased["max_train_steps"] == 7
    assert [phase["lr_scheduler_args"] for phase in phased["phases"]] == [{}, {"num_cycles": 3}]

    files.write("recipes/low.toml", '[recipe]\nlr_scheduler_type = "StepLR"\nlr_scheduler_args = ["step_size=3"]\n')
    for name, args in (("constant", {"num_cycles": 0.5}), ("cosine", {"num_cycles": 0.5})):
        named = recipe(f'lr_scheduler = "{name}"')
        assert (named["lr_scheduler"], named["lr_scheduler_args"]) == (name, args)
        assert "lr_scheduler_type" not in named
    files.write("recipes/low.toml", "[[recipe.phases]]\nmax_train_steps = 3\n")
    assert "phases" not in recipe("max_train_steps = 12")
