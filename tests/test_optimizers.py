"""Optimizers by name: their table is true, each can be had, and a training by any of them goes on byte for byte."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_schedule import settings
from tiny_base import RECIPE, dataset, latents
from torch import Tensor
from torch.nn import Parameter

from lorabuild.checks import dry
from lorabuild.errors import Interrupted, JobError
from lorabuild.nn import feed, trainer
from lorabuild.nn.batches import Data, MicroBatch
from lorabuild.nn.optimizers import averaged, finish, grouped, make, rates_now, restore, state, try_out
from lorabuild.nn.resume import StateFile
from lorabuild.nn.trainer import Observer, Training, train
from lorabuild.training import optimizers as known
from lorabuild.training.optimizers import warnings

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
NAMES = [name for name, one in known.OPTIMIZERS.items() if one.extra != "bitsandbytes" or HAS_BITSANDBYTES]
ON_A_CPU = [name for name in NAMES if not name.startswith("Paged")]


class Toy:
    """An adapter of a few weights; their loss is how far they are from what a batch asks for."""

    parts = ("te", "unet")
    leaves_text = False  # it trains all parts

    def __init__(self) -> None:
        noise = torch.Generator().manual_seed(3)
        shapes = {"te1.up": (4, 2), "te2.up": (3, 4), "unet.down": (8, 16), "unet.up": (4, 2, 3, 3)}
        self.weights = {name: Parameter(torch.randn(shape, generator=noise) * 0.1) for name, shape in shapes.items()}

    def at(self, *moment: int) -> None:
        pass

    def measuring(self) -> None:
        pass

    def tensors(self) -> dict[str, Tensor]:
        return {**self.weights}

    def parameters(self, part: str = "") -> dict[str, Parameter]:
        return {name: weight for name, weight in self.weights.items() if name.startswith(part)}

    def groups(self, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
        te = recipe["text_encoder_lr"]
        rates = {"te1": te[0], "te2": te[1]} if isinstance(te, list) else {"te": te}
        rates["unet"] = recipe["unet_lr"]
        found = [{"name": name, "params": [*self.parameters(name).values()], "lr": lr} for name, lr in rates.items()]
        return [group for group in found if group["lr"]]

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(tensors[name])

    def losses(self, batch: MicroBatch) -> Tensor:
        wanted = batch.noise.flatten(1).mean(1) + batch.timesteps / 1000
        return sum(
            ((weight - w) ** 2).mean() + weight.sin().mean() for weight in self.weights.values() for w in wanted
        )[None].expand(len(wanted))


def toy_training(recipe: Mapping[str, Any]) -> Training:
    whole = {**RECIPE, **settings(**recipe), "train_batch_size": 2, "gradient_accumulation_steps": 3}
    return Training(None, Toy(), Data(dataset(), latents().__getitem__), whole)


@pytest.fixture(autouse=True)
def toy_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer._Loop, "_losses", lambda self, batch, objective: self.training.adapter.losses(batch))
    monkeypatch.setattr(feed, "caption_ids", lambda *args: (torch.zeros(2, 2, 77, dtype=torch.int64), None))


def run(
    folder: Path, recipe: Mapping[str, Any], stop_after: int = 10**9, steps: tuple[int, ...] = ()
) -> tuple[dict[str, bytes], list[dict[str, Any]], dict[int, dict[str, bytes]]]:
    """The final weights, the log and the snapshots; stopped after so many micro-batches, and taken up again."""
    asked, snapshots = iter(range(10**9)), {}
    while True:
        training = toy_training(recipe)
        weights = training.adapter.weights

        def bytes_now(weights: dict[str, Parameter] = weights) -> dict[str, bytes]:
            return {name: weight.detach().numpy().tobytes() for name, weight in weights.items()}

        state_file = StateFile(folder / "state", "toy", clock=lambda: 0.0)  # due after every update
        observer = Observer(
            steps=steps,
            snapshot=lambda step, now=bytes_now: snapshots.update({step: now()}),
            stopping=lambda: next(asked) == stop_after,
        )
        try:
            log = train(training, observer, state_file, state_file.load())
            return bytes_now(), log, snapshots
        except Interrupted:
            continue


PHASES = {
    "phases": [
        {"max_train_steps": 3, "lr_scheduler": "linear", "lr_warmup_steps": 1},
        {"max_train_steps": 3, "lr_scheduler": "cosine", "unet_lr": 2e-2},
    ]
}
RATES = {"unet_lr": 1e-2, "text_encoder_lr": 5e-3}
ONE = {"learning_rate": 1.0}
RUNS: list[dict[str, Any]] = [
    *({"optimizer_type": name, **RATES, **PHASES} for name in ("AdamW", "ClybW", "LodeW", "Lion", "SGDNesterov")),
    {"optimizer_type": "AdamW", "optimizer_args": {"amsgrad": True}, **RATES, "max_train_steps": 6},
    {"optimizer_type": "Adafactor", "max_train_steps": 6},
    {"optimizer_type": "Adafactor", "optimizer_args": {"relative_step": False, "beta1": 0.9}, **RATES, **PHASES},
    {"optimizer_type": "Prodigy", "optimizer_args": ["d0=1e-4", "safeguard_warmup=True"], **ONE, "max_train_steps": 6},
    {"optimizer_type": "Prodigy", "optimizer_args": {"d0": 1e-4, "slice_p": 3}, **ONE, "lr_scheduler": "cosine", "max_train_steps": 6},
    {"optimizer_type": "AdamWScheduleFree", **RATES, "optimizer_args": {"warmup_steps": 2}, "max_train_steps": 6},
    {"optimizer_type": "RAdamScheduleFree", **RATES, "max_train_steps": 6},
    {"optimizer_type": "SGDScheduleFree", **RATES, "max_train_steps": 6},
    *(
        {"optimizer_type": name, "optimizer_args": {"d0": 1e-4}, **ONE, "max_train_steps": 6}
        for name in NAMES
        if name.startswith("DAdapt")
    ),
    *({"optimizer_type": f"torch.optim.{name}", **RATES, **PHASES} for name in known.TORCH if name != "Rprop"),
    {"optimizer_type": "Rprop", **RATES, "max_train_steps": 6},  # it takes the rate of its first update only
    {"optimizer_type": "adadelta", **RATES, "max_train_steps": 6, "lr_scheduler_type": "CyclicLR", "lr_scheduler_args": {"base_lr": 1e-3, "max_lr": 1e-2, "cycle_momentum": False}},
    {"optimizer_type": "AdamW", "unet_lr": 1e-2, "text_encoder_lr": [1e-3, 0], **PHASES},
    *([{"optimizer_type": "AdamW8bit", "optimizer_args": {"min_8bit_size": 64}, **RATES, **PHASES}] if HAS_BITSANDBYTES else []),
]  # fmt: skip


def label(recipe: dict[str, Any]) -> str:
    return f"{recipe['optimizer_type']}-{'phases' if 'phases' in recipe else recipe.get('optimizer_args', '')}"


@pytest.mark.parametrize("recipe", RUNS, ids=label)
def test_a_stopped_training_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path, recipe: dict[str, Any]):
    """Stopped within an update of each phase, and once more right after it was taken up; 3 micro-batches an update."""
    straight = tmp_path / "straight"
    straight.mkdir()
    weights, log, _ = run(straight, recipe)
    assert all(math.isfinite(record["loss"]) for record in log)
    assert log[-1]["loss"] != log[0]["loss"], "nothing was trained"
    if recipe["optimizer_type"] == "Prodigy":
        first, *_, last = (one["d*lr"]["unet"] / one["lr"]["unet"] for one in log if one["event"] == "step")
        assert last > 2 * first, "what it has found is not put to the test"
    for stop_after in (4, 10, 14):
        stopped = tmp_path / str(stop_after)
        stopped.mkdir()
        again, log_again, _ = run(stopped, recipe, stop_after)
        assert log_again == log
        assert again == weights


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree", "ClybW"])
def test_which_snapshots_are_saved_changes_no_byte(tmp_path: Path, name: str):
    recipe = {"optimizer_type": name, **RATES, "max_train_steps": 5}
    weights, log, none = run(tmp_path, recipe)
    (tmp_path / "state").unlink()
    again, log_again, snapshots = run(tmp_path, recipe, steps=(1, 2, 4, 5))
    assert (again, log_again, none) == (weights, log, {})
    assert snapshots[5] == weights != snapshots[4]


def test_a_snapshot_of_a_schedule_free_training_is_the_average(tmp_path: Path):
    parameter = Parameter(torch.ones(2, 2))
    recipe = settings(optimizer_type="AdamWScheduleFree", learning_rate=0.1)
    optimizer = make(recipe, [{"params": [parameter], "name": "unet", "lr": 0.1}])
    for _ in range(3):
        parameter.grad = parameter.detach().clone()
        optimizer.step()
    trained, z = parameter.detach().clone(), optimizer.state[parameter]["z"]
    with averaged(optimizer):
        expected = torch.lerp(trained, z, 1 - 1 / 0.9)
        torch.testing.assert_close(parameter.detach(), expected)
        assert not torch.equal(parameter.detach(), trained)
    assert torch.equal(parameter.detach(), trained)
    optimizer.step()  # it is in its training mode again
    finish(optimizer)
    assert optimizer.param_groups[0]["train_mode"] is False


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_the_classes_say(name: str):
    about = known.optimizer(name)
    module, _, attribute = about.path.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    forced = {"momentum"} if name.startswith("SGDNesterov") else set()
    for key, default in {**about.args, **about.rare}.items():
        assert key in signature, key
        theirs = signature[key].default
        theirs = None if theirs == math.inf else list(theirs) if isinstance(theirs, tuple) else theirs
        assert key in forced or theirs == default, key
        assert not known._misfit(key, default, default), key
    assert set(about.fixed) <= set(signature)


@pytest.mark.parametrize("name", ON_A_CPU)
def test_each_can_be_had_and_trains(name: str):
    recipe = settings(optimizer_type=name.lower())
    assert recipe["optimizer_type"] == name
    try_out(recipe)


def test_a_package_that_is_not_there_is_one_line_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(JobError, match=r'needs a package: pip install "lorabuild\[prodigy\]"'):
        try_out(settings(optimizer_type="Prodigy"))


@pytest.mark.parametrize(
    ("recipe", "codes"),
    [
        ({}, []),
        ({"optimizer_type": "torch.optim.AdamWW"}, ["LB071"]),
        ({"optimizer_type": "prodigyopt.Prodigy", "unet_lr": 1.0, "text_encoder_lr": 0.5}, ["LB071"]),
        ({"optimizer_type": "prodigyopt.Prodigy", "unet_lr": 1.0, "text_encoder_lr": 0.0}, []),
        ({"lr_scheduler_type": "StepLRR"}, ["LB072"]),
        ({"optimizer_type": "no.Such", "lr_scheduler_type": "StepLRR"}, ["LB071", "LB072"]),
        ({"phases": [{"max_train_steps": 1}, {"max_train_steps": 1, "lr_scheduler_type": "StepLR"}]}, ["LB072"]),
    ],
    ids=str,
)
def test_check_tries_optimizer_and_schedule(recipe: dict[str, Any], codes: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(dry.PARTS, "LB070")  # the adapter
    found = dry.tried(settings(**recipe), None)
    assert [code for code, _ in found["faults"]] == codes


def test_every_extra_is_declared():
    import tomllib

    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = {one.extra for one in known.OPTIMIZERS.values() if one.extra}
    assert extras <= set(declared["optional-dependencies"])


@pytest.mark.parametrize(
    ("path", "args", "said"),
    [
        ("torch.optim.AdamWW", {}, 'no such class \\(did you mean "AdamW"'),
        ("no_such_package.Thing", {}, "No module named"),
        ("torch.optim.NAdam", {"momentum_decy": 1}, 'momentum_decy: unknown key \\(did you mean "momentum_decay"'),
        ("torch.optim.NAdam", {"betas": 3}, "cannot be used: TypeError"),
        ("torch.optim.LBFGS", {}, "cannot be used"),
        ("torch.optim.SparseAdam", {}, "cannot be used"),
    ],
)
def test_a_class_that_cannot_be_used_is_one_line(path: str, args: dict[str, Any], said: str):
    with pytest.raises(JobError, match=said) as error:
        try_out(settings(optimizer_type=path, optimizer_args=args))
    assert "\n" not in str(error.value)


def test_two_rates_for_one_that_finds_it_are_refused():
    groups = [{"params": [Parameter(torch.ones(2, 2))], "name": str(lr), "lr": lr} for lr in (1.0, 0.5)]
    with pytest.raises(JobError, match="one rate for all"):
        make(settings(optimizer_type="Prodigy"), groups)
    recipe = settings(optimizer_type="Prodigy")
    assert recipe["unet_lr"] == recipe["text_encoder_lr"] == 1.0, "it is the default of those that find the scale"
    assert warnings(recipe) == []
    assert "1 is usual" in warnings(settings(optimizer_type="Prodigy", learning_rate=1e-4))[0]


def test_a_warm_up_as_long_as_the_training_is_told():
    recipe = {"lr_scheduler": "cosine", "max_train_steps": 12}
    assert warnings(settings(**recipe, lr_warmup_steps=11)) == []
    (said,) = warnings(settings(**recipe, lr_warmup_steps=100))
    assert said == "recipe.lr_warmup_steps: 100 of 12 updates: the rate never comes to its height"


def test_groups_are_what_has_equal_rates_in_all_phases():
    """A part that is frozen in one phase has a rate of 0 there; one that is frozen in all is in no group."""
    phases = [
        {"max_train_steps": 1, "text_encoder_lr": 0},
        {"max_train_steps": 1, "unet_lr": 2.0, "text_encoder_lr": [0, 1.0]},
    ]
    groups, rates = grouped(settings(unet_lr=1.0, phases=phases), Toy())
    assert [(group["name"], len(group["params"])) for group in groups] == [("te2", 1), ("unet", 2)]
    assert rates == [[0.0, 1.0], [1.0, 2.0]]


def test_what_is_logged_of_rates():
    parameter = Parameter(torch.ones(2, 2))
    groups = [{"params": [parameter], "name": "unet", "lr": 1.0}]
    prodigy = make(settings(optimizer_type="Prodigy", optimizer_args={"d0": 0.25}), groups)
    assert rates_now(prodigy) == {"lr": {"unet": 1.0}, "d*lr": {"unet": 0.25}}
    own = make(settings(optimizer_type="Adafactor"), groups)
    parameter.grad = torch.ones(2, 2)
    own.step()
    assert rates_now(own)["lr"]["unet"] == pytest.approx(1e-2)  # 1e-2 times the root mean square of the weights


def test_a_state_holds_what_optimizers_keep_in_whatever_form():
    class Odd(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            for number, p in enumerate(self.param_groups[0]["params"]):
                shared = self.param_groups[0]["table"]
                self.state[p] |= {"step": 3, "map": shared, "bytes": torch.full((2,), number, dtype=torch.uint8)}
                self.state[p] |= {"history": [torch.ones(2), None], "more": {"a": (1, math.inf)}}

    def odd() -> tuple[torch.optim.Optimizer, dict[str, Parameter]]:
        parameters = {name: Parameter(torch.ones(2)) for name in "ab"}
        return Odd([*parameters.values()], {"table": torch.arange(3), "d": 0.1, "betas": (0.9, 0.99)}), parameters

    optimizer, parameters = odd()
    optimizer.step()
    tensors, facts = state(optimizer, parameters)
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
    other, its = odd()
    restore(other, its, tensors, facts)
    for one, another in zip(parameters.values(), its.values(), strict=True):
        mine, theirs = optimizer.state[one], other.state[another]
        assert mine.keys() == theirs.keys()
        assert theirs["bytes"].dtype == torch.uint8 and torch.equal(mine["bytes"], theirs["bytes"])
        assert torch.equal(theirs["history"][0], torch.ones(2)) and theirs["history"][1] is None
        assert (theirs["step"], theirs["more"]) == (3, {"a": (1, math.inf)})
    assert other.param_groups[0]["betas"] == (0.9, 0.99)
    optimizer.param_groups[0]["odd"] = object()
    with pytest.raises(JobError, match="odd is a object"):
        state(optimizer, parameters)
