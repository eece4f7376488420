"""One autograd node for linear layers with their low-rank adapters: x Wᵀ + b + scale · (x Dᵀ) Uᵀ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def lowrank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The layer's output with its adapter. x [..., I], weight [O, I], bias [O], down [R, I], up [O, R] -> [..., O].

    The same function as LyCORIS' bypass mode, in one node instead of some twelve: where layers are many and small, time
    goes into nodes. Gradients go to x, down and up; weight and bias are frozen. Under autocast all products are in its
    dtype, and the gradients of down and up come back in theirs.
    """
    return _LowRankLinear.apply(x, weight, bias, down, up, scale)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        dtype = compute_dtype(x)
        rows = as_dtype(x.reshape(-1, x.shape[-1]), dtype)
        middle = rows.mm(as_dtype(down, dtype).t()).mul_(scale)
        # The small product first and the large one added onto it: the sum is rounded once. The other way round, a base
        # output in bf16 would swallow every update below half of its last bit.
        out = middle.mm(as_dtype(up, dtype).t()).addmm_(rows, as_dtype(weight, dtype).t())
        if bias is not None:
            out += bias
        ctx.save_for_backward(rows, middle, weight, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, middle, weight, down, up = ctx.saved_tensors
        dtype = rows.dtype
        grad = as_dtype(grad.reshape(-1, grad.shape[-1]), dtype)
        grad_middle = grad.mm(as_dtype(up, dtype)).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_middle.mm(as_dtype(down, dtype)).addmm_(grad, as_dtype(weight, dtype))
            grad_x = as_dtype(grad_x.view(ctx.shape), ctx.dtype)
        grad_down = as_dtype(grad_middle.t().mm(rows), down.dtype)
        grad_up = as_dtype(grad.t().mm(middle), up.dtype)
        return grad_x, None, None, grad_down, grad_up, None


def lowrank_linears(
    x: Tensor, weights: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor], scale: float
) -> tuple[Tensor, ...]:
    """What `lowrank_linear` gives for n layers of one input, in one node, which casts, reads and keeps x once.

    x [..., I], weights [n, O, I], downs n of [R, I], ups n of [O, R] -> n of [..., O]. The ranks' values of all layers
    are one product, the bases' outputs another.
    """
    return _LowRankLinears.apply(x, weights, torch.stack(list(downs)), torch.stack(list(ups)), scale)


class _LowRankLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weights: Tensor, down: Tensor, up: Tensor, scale: float
    ) -> tuple[Tensor, ...]:
        dtype, count, ctx.trained = compute_dtype(x), len(weights), down.dtype
        rows = as_dtype(x.reshape(-1, x.shape[-1]), dtype)
        down, up = as_dtype(down, dtype), as_dtype(up, dtype)
        middle = rows.mm(down.flatten(0, 1).t()).mul_(scale)  # [N, n R]
        # Here, too, the small product comes first and the large one is added onto it.
        out = torch.bmm(middle.unflatten(1, (count, -1)).transpose(0, 1), up.mT)  # [n, N, O]
        out.baddbmm_(rows.expand(count, -1, -1), as_dtype(weights, dtype).mT)
        ctx.save_for_backward(rows, middle, weights, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return tuple(one.view(*x.shape[:-1], -1) for one in out.unbind())

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, middle, weights, down, up = ctx.saved_tensors
        dtype, count = rows.dtype, len(weights)
        each = [as_dtype(grad.reshape(-1, grad.shape[-1]), dtype) for grad in grads]
        thin = torch.cat([grad.mm(one) for grad, one in zip(each, up, strict=True)], dim=1).mul_(ctx.scale)  # [N, n R]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = thin.mm(down.flatten(0, 1))
            for grad, weight in zip(each, weights, strict=True):
                grad_x.addmm_(grad, as_dtype(weight, dtype))
            grad_x = as_dtype(grad_x.view(ctx.shape), ctx.dtype)
        grad_down = as_dtype(thin.t().mm(rows), ctx.trained).unflatten(0, (count, -1))
        parts = middle.unflatten(1, (count, -1)).unbind(1)
        grad_up = torch.stack([grad.t().mm(part) for grad, part in zip(each, parts, strict=True)])
        return grad_x, None, grad_down, as_dtype(grad_up, ctx.trained), None


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, which even where nothing is to be done costs as much as a small product."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def single(tensor: Tensor) -> Tensor:
    """`tensor` in float32, which sums of a layer and its adapter are made in; float64, the tests' measure, stays."""
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a layer of the base computes in on the input x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
