"""Muon: momentum whose singular values are all made one (K. Jordan and others, "Muon: An optimizer for hidden layers in neural
networks", 2024). torch's own takes one matrix at a time, and no convolutions; a U-Net of 800 small ones wants them stacked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ROUNDS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that the paper gives: fast, and one to within a third


class Muon(torch.optim.Optimizer):
    """For weights of two and more dimensions, each seen as a matrix [out, all the rest]; no decay."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for one in group["params"]:
                if one.grad is not None:
                    alike[len(one), one[0].numel()].append(one)
            for shape, ones in alike.items():
                updates = orthogonal(torch.stack([self._moved(one).view(shape) for one in ones]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(ones, [u.view_as(one) for u, one in zip(updates, ones, strict=True)], alpha=-scale)

    def _moved(self, one: Tensor) -> Tensor:
        """The gradient with the momentum, by Nesterov."""
        state = self.state[one]
        if not state:
            state["momentum"] = torch.zeros_like(one, memory_format=torch.contiguous_format)
        momentum = state["momentum"].mul_(MOMENTUM).add_(one.grad)
        return one.grad + MOMENTUM * momentum


def orthogonal(stack: Tensor) -> Tensor:
    """Matrices [N, a, b] with the same singular vectors, and singular values of about one (Newton and Schulz's iteration).

    In bfloat16: the values are within a third of one at best, and it takes a third of the time.
    """
    wide = stack.mT if stack.shape[1] > stack.shape[2] else stack
    wide = (wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).bfloat16()
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = wide @ wide.mT
        wide = a * wide + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ wide
    found = wide.to(stack.dtype)
    return found.mT if stack.shape[1] > stack.shape[2] else found
