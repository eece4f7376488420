"""AdamW: torch's, on parameters that lie together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

from lorabuild.nn.runs import Run, RunOptimizer


class AdamW(RunOptimizer):
    """Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2: torch.optim.AdamW(fused=True).

    State, as torch's: `step`, `exp_avg`, `exp_avg_sq`, and `max_exp_avg_sq` with amsgrad.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
    ):
        settings = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, {"lr": lr, **settings})
        self.moments = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))

    def update(self, group: dict[str, Any], run: Run) -> None:
        largest = [run.moments["max_exp_avg_sq"]] if group["amsgrad"] else []
        adamw(
            [run.numbers],
            [run.gradients],
            [run.moments["exp_avg"]],
            [run.moments["exp_avg_sq"]],
            largest,
            [torch.full((), run.count - 1.0, device=run.numbers.device)],  # it adds this one itself
            fused=True,
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
