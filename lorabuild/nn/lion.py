"""Lion: steps of one length along the sign of a mix of gradient and running mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2, for all tensors at once (foreach).

    With a gradient g: p <- (1 - lr * weight_decay) p - lr * sign(β1 m + (1 - β1) g), then m <- β2 m + (1 - β2) g.
    Rates are some three to ten times lower than AdamW's. State: `exp_avg` (m).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            (beta1, beta2), rate = group["betas"], group["lr"]
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            means = [self.state[parameter]["exp_avg"] for parameter in parameters]
            steps = torch._foreach_mul(means, beta1)
            torch._foreach_add_(steps, gradients, alpha=1 - beta1)
            torch._foreach_sign_(steps)
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            torch._foreach_add_(parameters, steps, alpha=-rate)
            torch._foreach_mul_(means, beta2)
            torch._foreach_add_(means, gradients, alpha=1 - beta2)
        return loss
