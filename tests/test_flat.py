"""Parameters and gradients in two lines of memory: the same numbers as apart, and who has no gradient is not moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from lorabuild.nn.adamw import AdamW
from lorabuild.nn.clybw import ClybW
from lorabuild.nn.flat import Flat, Share
from lorabuild.nn.lion import Lion
from lorabuild.nn.optimizers import restore, state

SHAPES = [(4, 3), (5,), (4, 3), (), (4, 3), (2, 3, 2, 2), (5,), (8, 6)] * 3
OURS = [ClybW, Lion, AdamW, lambda params: AdamW(params, amsgrad=True)]
SELDOM = (2, 5, 6, 9)  # parameters that have no gradient in every other update


def parameters(seed: int = 1) -> list[Parameter]:
    noise = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=noise)) for shape in SHAPES]


def gradients(update: int, seldom: tuple[int, ...]) -> Iterator[tuple[int, torch.Tensor]]:
    noise = torch.Generator().manual_seed(update)
    for place, shape in enumerate(SHAPES):
        gradient = torch.randn(shape, generator=noise)
        if place not in seldom or update % 2:
            yield place, gradient


def reach(them: list[Parameter], places: Iterator[tuple[int, torch.Tensor]]) -> None:
    """A backward pass that comes to these parameters."""
    torch.stack([(them[place] * gradient).sum() for place, gradient in places]).sum().backward()


def trained(make: Callable[..., Optimizer], flat: bool, updates: int, seldom: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """Parameters and optimizer after some updates, of parameters in lines or each somewhere."""
    them = parameters()
    optimizer = make(them)
    lines = Flat.of(optimizer) if flat else None
    for update in range(updates):
        reach(them, gradients(update, seldom))
        if lines:
            lines.settle()
        optimizer.step()
        if lines:
            lines.clear()
        else:
            optimizer.zero_grad()
    return them, optimizer


@pytest.mark.parametrize("make", [*OURS, lambda params: SGD(params, 1e-2, momentum=0.9, weight_decay=0.1)])
@pytest.mark.parametrize("seldom", [(), SELDOM, tuple(range(0, len(SHAPES), 2))], ids=["all", "few", "half"])
def test_a_training_does_not_depend_on_where_parameters_lie(make, seldom):
    """Also where some have no gradient at times: those keep still, undecayed, and count their own updates."""
    (some, one), (others, other) = trained(make, False, 6, seldom), trained(make, True, 6, seldom)
    for a, b in zip(some, others, strict=True):
        kept, found = one.state[a], other.state[b]
        assert kept.keys() == found.keys() and kept.get("step") == found.get("step")
        for mine, its in ((a, b), *((kept[key], found[key]) for key in kept.keys() - {"step"})):
            assert torch.equal(mine, its)


def test_adamw_is_torchs():
    def torchs(params: list[Parameter]) -> Optimizer:
        return torch.optim.AdamW(params, fused=True)

    (some, one), (others, other) = trained(torchs, False, 5, SELDOM), trained(AdamW, True, 5, SELDOM)
    for a, b in zip(some, others, strict=True):
        assert torch.equal(a, b)
        assert one.state[a].keys() == other.state[b].keys()
        assert one.state[a]["step"] == other.state[b]["step"]


@pytest.mark.parametrize("make", OURS)
def test_a_state_goes_into_lines_again(make):
    """In the middle of a training, when the runs of the updates before are known."""
    names = [str(place) for place in range(len(SHAPES))]
    them, optimizer = trained(make, True, 3)
    tensors, facts = state(optimizer, dict(zip(names, them, strict=True)))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    others = parameters()
    resumed = make(others)
    lines = [Flat.of(optimizer), Flat.of(resumed)]
    for update in (3, 4):
        if update == 4:  # the run of update 3 is not taken for that of another state
            for one in (optimizer, resumed):
                restore(one, dict(zip(names, one.param_groups[0]["params"], strict=True)), tensors, facts)
        for own, flat, one in zip((them, others), lines, (optimizer, resumed), strict=True):
            with torch.no_grad():
                for parameter, start in zip(own, parameters(2), strict=True):
                    parameter.copy_(start)
            reach(own, gradients(update, ()))
            flat.settle()
            one.step()
            flat.clear()
    assert all(torch.equal(a, b) for a, b in zip(them, others, strict=True))


def test_one_run_is_stepped_and_then_known():
    them = parameters()
    optimizer = ClybW(them)
    flat, found = Flat.of(optimizer), []
    for update in range(3):
        reach(them, gradients(update, ()))
        flat.settle()
        optimizer.step()
        flat.clear()
        found.append(optimizer._known[0][1])
    assert len(found[0]) == 1 and found[0] is found[1] is found[2]
    run = found[0][0]
    assert run.numbers.data_ptr() == flat.numbers.data_ptr() and len(run.stacks) == len(set(SHAPES))
    assert run.moments["ema"].numel() == flat.numbers.numel()


def test_gradients_are_added_where_they_lie_to_the_bit_of_a_zeros_sign():
    one, other, third = (Parameter(torch.ones(3)) for _ in range(3))
    flat = Flat([[one, other], [third]])
    for factor in (torch.tensor([-0.0, 1.0, 2.0]), torch.tensor([-0.0, 0.5, -2.0])):
        (one * factor + third.detach()).sum().backward()
    flat.settle()
    assert torch.equal(one.grad, torch.tensor([0.0, 1.5, 0.0])) and one.grad.signbit().tolist() == [True, False, False]
    assert one.grad.data_ptr() == flat.gradients.data_ptr()
    assert other.grad is None and third.grad is None and flat.absent == {1, 2}
    flat.clear()
    assert not flat.gradients.any()
    (third * 2).sum().backward()
    flat.settle()
    assert one.grad is None and torch.equal(third.grad, torch.full((3,), 2.0))


def test_shares_are_added_as_autograd_adds():
    others = parameters()
    lines, shares = Flat([others]), []
    for update in range(3):
        reach(others, gradients(update, (*SELDOM, 0) if update else (1, *SELDOM)))
        shares.append(lines.take())
    lines.add(Share(torch.full_like(lines.gradients, -0.0), frozenset(range(len(SHAPES)))))
    for share in shares:
        lines.add(share)
    again = parameters()
    plain = Flat([again])
    for update in range(3):
        reach(again, gradients(update, (*SELDOM, 0) if update else (1, *SELDOM)))
    plain.settle()
    lines.settle()
    assert plain.absent == lines.absent and torch.equal(plain.gradients, lines.gradients)


def test_an_optimizer_that_puts_other_gradients_in_place_is_borne():
    class Rude(SGD):
        def step(self) -> None:
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(2)
                    parameter.grad = parameter.grad.clone()
            super().step()

    (some, _), (others, _) = (trained(lambda params: Rude(params, 1e-2), flat, 5, SELDOM) for flat in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_the_norm_is_that_of_all_numbers_and_clipping_torchs():
    them, others = parameters(), parameters()
    flat = Flat([them[:4], them[4:]])
    reach(them, gradients(1, ()))
    reach(others, gradients(1, ()))
    flat.settle()
    total = torch.nn.utils.clip_grad_norm_(others, 0.5)
    assert flat.norm().item() == pytest.approx(total.item(), rel=1e-6)
    flat.scale(total, 0.5)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(them, others, strict=True))
    assert flat.norm().item() == pytest.approx(0.5, rel=1e-5)
    flat.scale(flat.norm(), 1.0)  # none is made larger
    assert flat.norm().item() == pytest.approx(0.5, rel=1e-5)
