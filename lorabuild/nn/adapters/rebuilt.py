"""Make a weight of few tensors in one autograd node, which keeps those and not what it made on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

Made = tuple[Tensor, ...]


def rebuilt(make: Callable[..., Made], tensors: Sequence[Tensor]) -> Made:
    """`make(*tensors)`, without autocast. In the backward pass it is made again: a product as large as the base's weight
    would else be kept for each layer, in float32, and more than once."""
    return _Rebuilt.apply(make, *tensors)


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, make: Callable[..., Made], *tensors: Tensor) -> Made:
        ctx.make = make
        ctx.save_for_backward(*tensors)
        with torch.autocast(tensors[0].device.type, enabled=False):
            return make(*tensors)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        inputs = [tensor.detach().requires_grad_(want) for tensor, want in zip(ctx.saved_tensors, wanted, strict=True)]
        with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
            made = ctx.make(*inputs)
        reached = [(one, grad) for one, grad in zip(made, grads, strict=True) if one.requires_grad]
        learning = [tensor for tensor in inputs if tensor.requires_grad]
        found = torch.autograd.grad(
            [one for one, _ in reached], learning, [grad for _, grad in reached], allow_unused=True
        )
        by_input = iter(found)
        return None, *(next(by_input) if tensor.requires_grad else None for tensor in inputs)
