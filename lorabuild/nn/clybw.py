"""ClybW and LodeW: Adam's kin that step along the gradient plus an amplified running mean of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lorabuild.nn.runs import Run, RunOptimizer

SMALL = 1e-8  # added to a standard deviation that is divided by


class ClybW(RunOptimizer):
    """clybius' ClybW (kohya forks call it so; its class is "Compass").

    Of a gradient g of a tensor with more than one dimension, with a = amp_fac and t updates done:

        g  <- g - centralization * mean(g)     over all dimensions but the first
        g  <- g / (std(g) + 1e-8)              likewise, unbiased: see `normalization_mode`
        m  <- β1 m + (1 - β1) g
        g' <- g + a m
        v  <- β2 v + (1 - β2) g'^2
        s   = lr / (1 - β1^t)
        p  <- (1 - s * weight_decay) p - s * g' / (sqrt(v) / sqrt(1 - β2^t) + eps)

    `normalization_mode`: "full" divides wherever `normalization` is not 0, whatever its value, as the published code
    does; "lerp" goes the part `normalization` of the way, as it means to. Where there are no rows, because a tensor has one
    dimension or `normalize_channels` is false, mean and deviation are of all its numbers, if they are more than two. So
    are those of rows of one number, which have no deviation: there the published code makes NaN.

    The first steps are up to 1 / (1 - β1) times the rate: s corrects m, and multiplies g, too. Gradients are used up.
    State, float32 for float32 parameters: `step`, `ema` (m), `ema_squared` (v).
    """

    moments = ("ema", "ema_squared")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        amp_fac: float = 2.0,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        centralization: float = 0.5,
        normalization: float = 0.5,
        normalize_channels: bool = True,
        normalization_mode: str = "full",
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "amp_fac": amp_fac,
                "eps": eps,
                "weight_decay": weight_decay,
                "centralization": centralization,
                "normalization": normalization,
                "normalize_channels": normalize_channels,
                "normalization_mode": normalization_mode,
            },
        )

    def update(self, group: dict[str, Any], run: Run) -> None:
        (beta1, beta2), decay, count = group["betas"], group["weight_decay"], run.count
        step = group["lr"] / (1 - beta1**count)
        for stack in run.stacks:
            _condition(stack, group)
        p, g, m, v = run.numbers, run.gradients, run.moments["ema"], run.moments["ema_squared"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        g.add_(m, alpha=group["amp_fac"])
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        divisor = v.sqrt().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
        if decay:
            p.mul_(1 - step * decay)
        p.addcdiv_(g, divisor, value=-step)


class LodeW(ClybW):
    """lodestone's Compass, "LodeW": ClybW without normalisation, and with Adam's betas."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        amp_fac: float = 2.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        centralization: float = 0.0,
    ):
        super().__init__(params, lr, betas, amp_fac, eps, weight_decay, centralization, normalization=0.0)


def _condition(gradients: Tensor, group: dict[str, Any]) -> None:
    """Centralize and normalize the gradients of tensors of one shape [n, *shape], in place."""
    count, *shape = gradients.shape
    rows = count * (shape[0] if len(shape) > 1 else 1)
    _center(gradients.view(rows, -1), group["centralization"])
    in_rows = group["normalize_channels"] and len(shape) > 1 and gradients.numel() > rows
    if not in_rows:  # one number has no deviation
        rows = count
    if group["normalization"] and (in_rows or gradients.numel() > 2 * count):
        part = 1.0 if group["normalization_mode"] == "full" else group["normalization"]
        _scale(gradients.view(rows, -1), part)


def _center(rows: Tensor, part: float) -> None:
    """Take `part` of the mean of each row off, in place; rows [R, n]."""
    if part:
        rows.sub_(rows.mean(1, keepdim=True).mul_(part))


def _scale(rows: Tensor, part: float) -> None:
    """Divide each row by its standard deviation, in place; for `part` below 1 go so far from the one to the other."""
    deviations = _deviations(rows).add_(SMALL)
    if part == 1:
        rows.div_(deviations)
    else:
        rows.lerp_(rows / deviations, part)


def _deviations(rows: Tensor) -> Tensor:
    """The unbiased standard deviation of each row [R, 1], in float64 on the way.

    On a processor torch.std does so, too, a number at a time: it took half of an update.
    """
    exact = rows.to(torch.float64, copy=True)
    exact -= exact.mean(1, keepdim=True)
    return exact.square_().sum(1, keepdim=True).div_(rows.shape[1] - 1).sqrt_().to(rows.dtype)
