"""One autograd node for a linear layer with its low-rank adapter: x Wᵀ + b + scale · (x Dᵀ) Uᵀ."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def lowrank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """The layer's output with its adapter. x [..., I], weight [O, I], bias [O], down [R, I], up [O, R] -> [..., O].

    The same function as LyCORIS' bypass mode, in one node instead of some twelve: with layers as small or as many as
    SDXL's, time goes into nodes. Gradients go to x, down and up; weight and bias are frozen. Under autocast all products
    are in its dtype, and the gradients of down and up come back in theirs.
    """
    return _LowRankLinear.apply(x, weight, bias, down, up, scale)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        dtype = _compute_dtype(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        middle = rows.mm(down.to(dtype).t()).mul_(scale)
        # The small product first and the large one added onto it: the sum is rounded once. The other way round, a base
        # output in bf16 would swallow every update below half of its last bit.
        out = middle.mm(up.to(dtype).t()).addmm_(rows, weight.to(dtype).t())
        if bias is not None:
            out += bias
        ctx.save_for_backward(rows, middle, weight, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, middle, weight, down, up = ctx.saved_tensors
        dtype = rows.dtype
        grad = grad.reshape(-1, grad.shape[-1]).to(dtype)
        grad_middle = grad.mm(up.to(dtype)).mul_(ctx.scale)
        grad_down = grad_middle.t().mm(rows).to(down.dtype)
        grad_up = grad.t().mm(middle).to(up.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_middle.mm(down.to(dtype)).addmm_(grad, weight.to(dtype)).view(ctx.shape).to(ctx.dtype)
        return grad_x, None, None, grad_down, grad_up, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
