"""Lion: steps of one length along the sign of a mix of gradient and running mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorabuild.nn.runs import Run, RunOptimizer


class Lion(RunOptimizer):
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2.

    With a gradient g: p <- (1 - lr * weight_decay) p - lr * sign(β1 m + (1 - β1) g), then m <- β2 m + (1 - β2) g.
    Rates are some three to ten times lower than AdamW's. State: `step`, `exp_avg` (m).
    """

    moments = ("exp_avg",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    def update(self, group: dict[str, Any], run: Run) -> None:
        (beta1, beta2), rate, mean = group["betas"], group["lr"], run.moments["exp_avg"]
        step = mean.mul(beta1).add_(run.gradients, alpha=1 - beta1).sign_()
        if group["weight_decay"]:
            run.numbers.mul_(1 - rate * group["weight_decay"])
        run.numbers.add_(step, alpha=-rate)
        mean.mul_(beta2).add_(run.gradients, alpha=1 - beta2)
