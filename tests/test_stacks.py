"""Many small tensors as few larger ones: the same numbers, and no copies where they lie together."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from lorabuild.nn.clybw import ClybW
from lorabuild.nn.stacks import is_copy, lay_together, stacked, stacks, total_norm

SHAPES = [(4, 3), (5,), (4, 3), (), (4, 3), (2, 3, 2, 2), (5,)]


def parameters(seed: int = 1) -> list[Parameter]:
    noise = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=noise)) for shape in SHAPES]


def test_each_tensor_is_in_one_stack_of_its_shape_and_of_bounded_size():
    tensors = [*parameters(), torch.zeros(4, 3, dtype=torch.float64)]
    assert list(stacks(tensors)) == [[0, 2, 4], [1, 6], [3], [5], [7]]
    assert list(stacks(tensors, most=24)) == [[0, 2], [4], [1, 6], [3], [5], [7]]
    assert list(stacks(tensors, most=1)) == [[0], [2], [4], [1], [6], [3], [5], [7]]


def test_what_was_laid_together_is_stacked_without_a_copy():
    them = parameters()
    before = [one.detach().clone() for one in them]
    assert is_copy(stacked([them[0], them[2]]), [them[0], them[2]])
    lay_together(them)
    assert all(torch.equal(one, other) for one, other in zip(them, before, strict=True))
    alike = [them[0], them[2], them[4]]
    stack = stacked(alike)
    assert not is_copy(stack, alike) and torch.equal(stack, torch.stack(alike))
    stack.zero_()
    assert not any(one.any() for one in alike)
    for others in ([them[0], them[4]], [them[2], them[0]]):  # a gap, and another order
        assert is_copy(stacked(others), others)
    turned = [torch.zeros(2, 3, 3)[0].t(), torch.zeros(3, 3)]
    assert torch.equal(stacked(turned), torch.stack(turned))


@pytest.mark.parametrize("together", [True, False])
def test_an_optimizers_update_does_not_depend_on_where_tensors_lie(together: bool):
    some, others = parameters(), parameters()
    if together:
        lay_together(others)
    optimizers = [ClybW([one], lr=1e-2) for one in some], [ClybW(others, lr=1e-2)]
    for step in range(4):
        noise = torch.Generator().manual_seed(step)
        for number, (one, other) in enumerate(zip(some, others, strict=True)):
            gradient = torch.randn(one.shape, generator=noise)
            seldom = number == 2 and step == 1  # then its neighbours do not lie together
            one.grad, other.grad = (None, None) if seldom else (gradient, gradient.clone())
        for optimizer in [*optimizers[0], *optimizers[1]]:
            optimizer.step()
        assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_moments_lie_together_after_the_first_update():
    them = parameters()
    optimizer = ClybW(them)
    for one in them:
        one.grad = torch.ones_like(one)
    optimizer.step()
    moments = [optimizer.state[them[place]]["ema"] for place in (0, 2, 4)]
    assert not is_copy(stacked(moments), moments)


def test_the_norm_is_that_of_all_numbers():
    tensors = [one.detach() * 1e3 for one in parameters()]
    expected = torch.cat([one.flatten() for one in tensors]).double().norm()
    assert total_norm(tensors).item() == pytest.approx(expected.item(), rel=1e-7)
    assert total_norm([]).item() == 0
    assert total_norm([torch.tensor([3.0, float("nan")])]).isnan()
