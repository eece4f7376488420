"""AdamW: torch's, on parameters that lie together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lorabuild.nn.runs import Run, RunOptimizer

# Processors work on as many numbers at a time, or on a half or a quarter of it. What is left at a tensor's end torch's
# kernel rounds otherwise in the last bit.
VECTOR = 16


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
        sizes = list(_pieces(run.stacks))
        steps = torch.full((len(sizes),), run.count - 1.0, device=run.numbers.device)  # it adds this one itself
        adamw(
            list(run.numbers.split(sizes)),
            list(run.gradients.split(sizes)),
            list(run.moments["exp_avg"].split(sizes)),
            list(run.moments["exp_avg_sq"].split(sizes)),
            list(run.moments["max_exp_avg_sq"].split(sizes)) if group["amsgrad"] else [],
            list(steps.unbind()),
            fused=True,
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _pieces(stacks: Iterable[Tensor]) -> Iterator[int]:
    """Sizes of a run's pieces: neighbours that are whole vectors together, each of the others by itself.

    So the numbers do not depend on what lies beside a parameter.
    """
    whole = 0
    for stack in stacks:
        size = stack.numel() // len(stack)
        if size % VECTOR == 0:
            whole += stack.numel()
            continue
        if whole:
            yield whole
            whole = 0
        yield from [size] * len(stack)
    if whole:
        yield whole
