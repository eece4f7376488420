"""Every precision against float64: one update of a young adapter, the delta that arrives, and fp16's loss scale.

The bounds are those of docs/precision.md, which has the figures beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import EXACT, Update, arrives, error, exact_change, joined, prepared, sinusoids, update
from tiny_base import RECIPE, tiny_base
from torch import nn

from lorabuild.errors import Interrupted, JobError
from lorabuild.nn.batches import MicroBatch
from lorabuild.nn.loss_scale import FIRST, GROWS_AFTER, LossScale
from lorabuild.nn.objective import Objective
from lorabuild.nn.resume import StateFile
from lorabuild.nn.trainer import Observer, train

# Half the distance between neighbours at 1: what one rounding errs at most.
UNIT = {"no": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
# What an update errs at most, in units. In float32 sinusoids of angles up to 1000 count most.
BOUNDS = {
    "no": {"prediction": 32, "loss": 4, "norm": 32, "unet": 64, "te": 64},
    "bf16": {"prediction": 6, "loss": 1, "norm": 2, "unet": 8, "te": 16},
    "fp16": {"prediction": 6, "loss": 1, "norm": 2, "unet": 8, "te": 16},
}
# Of the first step of an optimizer that goes by a gradient's sign: some weights whose gradient is about 0 go the other way.
STEPS = {"no": 2e-3, "bf16": 0.25, "fp16": 0.1}
# Algorithm -> its network_args: all that have a forward pass of their own
OTHERS: dict[str, dict[str, Any]] = {
    "loha": {},
    "lokr": {},
    "full": {},
    "glora": {},
    "ia3": {},
    "diag-oft": {},
    "locon": {"dora_wd": True, "train_norm": True},
}
QUICK = ("full", "ia3")
# Few layers, for what does not depend on which they are.
SMALL: dict[str, Any] = {
    "network_args": {"algo": "locon", "preset": "unet-convblock-only", "conv_dim": 2, "conv_alpha": 1.0},
    "text_encoder_lr": 0.0,
}


def check(found: Update, exact: Update, mode: str) -> None:
    unit, bound = UNIT[mode], BOUNDS[mode]
    assert error(found.prediction, exact.prediction) < bound["prediction"] * unit
    assert found.loss == pytest.approx(exact.loss, rel=bound["loss"] * unit)
    assert found.norm == pytest.approx(exact.norm, rel=bound["norm"] * unit + 1e-6)  # the log has six digits
    assert found.gradients.keys() == exact.gradients.keys()
    for part in ("unet", "te1", "te2"):
        one, other = (joined(each.gradients, f"lora_{part}_") for each in (found, exact))
        if len(other):
            assert error(one, other) < bound[part[:2] if part != "unet" else part] * unit, part
            assert 1 - torch.cosine_similarity(one, other, dim=0) < (16 * unit) ** 2 + 1e-12, part
    assert error(joined(found.changes), joined(exact.changes)) < STEPS[mode]


# one update


@pytest.fixture(scope="module")
def exact_update() -> Update:
    return update(EXACT)


@pytest.mark.parametrize("mode", UNIT)
def test_an_update_of_both_text_encoders_and_the_unet_is_that_of_float64(mode: str, exact_update: Update):
    """LoCon on all 1,052 layers: prediction, loss, gradients of each part, and the weights after AdamW's step."""
    check(update(mode), exact_update, mode)


def test_the_measure_is_the_base_with_the_changes_added_to_its_weights_in_float64(exact_update: Update):
    """By torch alone: the adapter's own forward and backward are no part of it."""
    prediction, gradients = exact_change()
    assert error(exact_update.prediction, prediction) < 1e-12
    assert error(joined(exact_update.gradients), joined(gradients)) < 1e-10


@pytest.mark.parametrize(
    "algo", [algo if algo in QUICK else pytest.param(algo, marks=pytest.mark.slow) for algo in OTHERS]
)
def test_an_update_of_any_algorithm_is_that_of_float64(algo: str):
    """In bf16, where most can go wrong: the text encoder is in it, whose norms are given float32 by adapted layers."""
    args = {"algo": algo, "preset": "full", "conv_dim": 2, "conv_alpha": 1.0, **OTHERS[algo]}
    given = {"network_args": args, "text_encoder_lr": [1e-3, 0.0], "optimizer_type": "ClybW", "optimizer_args": {}}
    check(update("bf16", **given), update(EXACT, **given), "bf16")


# what is in float32 whatever the mode


def test_norms_and_adapter_are_in_float32():
    base = tiny_base(torch.bfloat16)
    for network in (base.unet, base.te1, base.te2):
        for module in network.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                assert module.weight.dtype == module.bias.dtype == torch.float32
    with prepared("bf16") as loop:
        assert {one.dtype for one in loop.parameters.values()} == {torch.float32}


def test_the_loss_of_a_rounded_prediction_is_taken_in_float32():
    prediction, target = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = MicroBatch(target, target, torch.tensor([0, 999]), [], torch.zeros(2, 6))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rounded = prediction.to(dtype)
        exact = (rounded.double() - target.double()).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(Objective.of({}).losses(rounded, target, batch).double(), exact, rtol=1e-6, atol=0)


def test_sizes_and_timesteps_reach_their_sinusoids_exactly():
    """1023 and 1025 are no bf16 numbers. The sinusoids themselves are rounded once, when they are done."""
    numbers = torch.tensor([1023.0, 1025.0, 999.0, 1.0, 4095.0])
    for name in ("time_proj", "add_time_proj"):
        module = getattr(tiny_base(torch.bfloat16).unet, name)
        with torch.autocast("cpu", torch.bfloat16):
            found = module(numbers)
        assert found.dtype == torch.float32
        assert (found - sinusoids(numbers, module.num_channels)).abs().max() < 4096 * 2.0**-23
    seen: list[torch.Tensor] = []
    with prepared("bf16") as loop:
        hook = loop.training.base.unet.register_forward_pre_hook(
            lambda module, args, kwargs: seen.extend([args[1], kwargs["added_cond_kwargs"]["time_ids"]]),
            with_kwargs=True,
        )
        loop.update([(0, [(0, 0)])])
        hook.remove()
    assert [one.dtype for one in seen] == [torch.int64, torch.float32]


# how much of a small change arrives


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-5])
def test_a_change_of_the_weights_arrives_however_small(mode: str, size: float):
    """|dW| = size |W|. Added to the weights in this dtype, as LyCORIS does it, it would be lost by and by."""
    for layer in (nn.Linear(256, 256), nn.Conv2d(64, 64, 3, padding=1)):
        ours, added = arrives(layer, mode, size)
        assert ours == pytest.approx(1, abs=0.05 if isinstance(layer, nn.Linear) else 0.005)
        if size < UNIT[mode] / 8:
            assert added < 0.6


# fp16's scale


def test_gradients_that_would_vanish_in_fp16_do_not():
    found: dict[str, torch.Tensor] = {}
    counts = []
    with prepared("fp16", **SMALL) as loop:
        loop.optimizer.step = lambda: found.update(
            {n: p.grad.clone() for n, p in loop.parameters.items() if p.grad is not None}
        )
        for loop.scale.scale in (1.0, 2.0**16):
            loop.update([(0, [(0, 0)])])
            counts.append(joined(found).count_nonzero().item())
    assert counts[0] < 0.99 * counts[1]


def test_an_overflow_changes_nothing_but_the_scale_and_the_update_is_made_again(capsys: pytest.CaptureFixture[str]):
    """Powers of two round nothing: where nothing vanishes or overflows, another scale makes the same update."""
    norms, changes = [], []
    for first in (2.0**16, 2.0**26):
        with prepared("fp16", **SMALL) as loop:
            before = {name: one.detach().clone() for name, one in loop.parameters.items()}
            capsys.readouterr()
            loop.scale.scale = first
            loop.update([(0, [(0, 0)])])
            said = capsys.readouterr().out.splitlines()
            changes.append(joined({name: one.detach() - before[name] for name, one in loop.parameters.items()}))
            assert loop.step == len(loop.log) == 1
            assert loop.log[0]["loss_scale"] == loop.scale.scale == first / 2 ** len(said)
            assert loop.log[0]["lr"]["unet"] == RECIPE["unet_lr"]
            norms.append(loop.log[0]["grad_norm"])
    assert said[0] == "step 1: fp16 overflowed; again at loss scale 3.35544e+07"
    assert norms[1] == pytest.approx(norms[0], rel=1e-3), "unscaled before it is measured"
    assert error(changes[1], changes[0]) < 0.05, "one step, not several"


@pytest.fixture
def always_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 with a scale, for what does not depend on fp16's numbers: on a CPU it is quicker."""
    monkeypatch.setattr(LossScale, "of", classmethod(lambda cls, precision: cls(True, FIRST)))


def test_what_overflows_without_a_scale_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, always_scaled: None):
    with prepared("no", **SMALL) as loop:
        loop.scale.scale = 4.0
        monkeypatch.setattr(LossScale, "unscale", lambda self, gradients: gradients[0].fill_(float("inf")))
        before = {name: one.detach().clone() for name, one in loop.parameters.items()}
        with pytest.raises(JobError, match=r'^step 1: the norm of the gradients is not finite \(inf\): .*"bf16"'):
            loop.update([(0, [(0, 0)])])
        assert all(torch.equal(one, before[name]) for name, one in loop.parameters.items())
        assert loop.scale.scale == 1.0


def test_the_scale_grows_after_many_updates_without_an_overflow():
    scale = LossScale.of("fp16")
    for _ in range(GROWS_AFTER - 1):
        scale.updated()
    assert scale.scale == 2.0**16
    scale.updated()
    assert (scale.scale, scale.clean) == (2.0**17, 0)
    scale.updated()
    assert scale.overflowed(float("nan"))
    assert (scale.scale, scale.clean) == (2.0**16, 0)


def test_other_precisions_have_no_scale():
    for mode in ("no", "bf16"):
        scale = LossScale.of(mode)
        loss = torch.ones(())
        assert scale.scaled(loss) is loss
        assert not scale.overflowed(float("inf"))
        scale.updated()
        assert scale == LossScale.of(mode)


def test_a_training_that_was_stopped_around_an_overflow_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always_scaled: None
):
    """Update 2 of 3 overflows once. The log has the scale and the rates; the weights are the same to the bit."""
    unscale = LossScale.unscale

    def overflowing(self: LossScale, gradients: Any) -> None:
        unscale(self, gradients)
        if (self.clean, self.scale) == (1, FIRST):
            gradients[0].fill_(float("inf"))

    def run(path: Path, answers: int) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        """To the end, or until it has been asked so often whether it is to stop; it goes on from a state, if there is one."""
        said = iter([False] * answers)
        with prepared("no", **SMALL, train_batch_size=1, max_validation_steps=1) as loop:
            state_file = StateFile(path, "one")
            log = train(loop.training, Observer(stopping=lambda: next(said, True)), state_file, state_file.load())
            return log, {name: one.detach().clone() for name, one in loop.parameters.items()}

    monkeypatch.setattr(LossScale, "unscale", overflowing)
    log, weights = run(tmp_path / "straight", 4)
    assert [one["loss_scale"] for one in log if one["event"] == "step"] == [FIRST, FIRST / 2, FIRST / 2]
    for answers in (2, 3):  # while update 2 is made again, and after it
        with pytest.raises(Interrupted):
            run(tmp_path / f"stopped{answers}", answers)
        again, same = run(tmp_path / f"stopped{answers}", 4)
        assert json.dumps(again) == json.dumps(log)
        assert all(torch.equal(one, weights[name]) for name, one in same.items())
