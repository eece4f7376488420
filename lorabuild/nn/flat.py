"""Lay the parameters of a training in one line of memory, and their gradients in another: one call works on all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, count
from operator import eq

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lorabuild.nn.runs import MOST, RunOptimizer

# What gradients start from, as adding it changes no number, not even the sign of a zero: -0 + 0 = 0, -0 + -0 = -0.
NOTHING = -0.0


@dataclass(frozen=True)
class Share:
    """Gradients of all numbers [n], and the places of parameters that no layer has used: they have none."""

    gradients: Tensor
    absent: frozenset[int]


class Flat:
    """Parameters, group by group and within one by shape, lie in `numbers` [n], their gradients in `gradients` [n].

    Autograd adds to gradients where they lie. A parameter that has had none since they were cleared has None for its
    gradient after `settle`: then no optimizer moves it, nor decays it. `touched` says that others than autograd, too,
    may change gradients one by one, or put others in their places: an optimizer of somebody else's.
    """

    def __init__(self, groups: Iterable[Iterable[Parameter]], touched: bool = True):
        self.parameters = [parameter for group in groups for parameter in _by_shape(group)]
        self.touched = touched
        sizes = [parameter.numel() for parameter in self.parameters]
        self.numbers = self.parameters[0].detach().new_empty(sum(sizes))
        self.gradients = torch.full_like(self.numbers, NOTHING)
        views = zip(self.parameters, self.numbers.split(sizes), self.gradients.split(sizes), strict=True)
        self._views = []
        for parameter, piece, gradient in views:
            piece.copy_(parameter.detach().flatten())
            parameter.data = piece.view_as(parameter)
            # `data` counts its own changes: they tell which parameters autograd has reached
            parameter.grad = gradient.view_as(parameter).data
            self._views.append(parameter.grad)
        self._everything = self.absent = frozenset(range(len(self.parameters)))
        self._changes = self._cleared = self._versions()
        self._added = self._everything  # absent from all that `add` has added

    @classmethod
    def of(cls, optimizer: Optimizer) -> Flat:
        """The parameters of an optimizer."""
        ours = isinstance(optimizer, RunOptimizer)
        flat = cls((group["params"] for group in optimizer.param_groups), touched=not ours)
        if ours:
            optimizer.arrangement = lambda: flat.absent
        return flat

    def settle(self) -> None:
        """Nothing is added any more: those without a gradient, whose places are now `absent`, have None."""
        self.absent = self._untouched() & self._added
        for place in self.absent:
            self.parameters[place].grad = None

    def clear(self) -> None:
        """No parameter has a gradient, after `settle`."""
        self.gradients.fill_(NOTHING)
        for place in range(len(self.parameters)) if self.touched else self.absent:
            if self.parameters[place].grad is not self._views[place]:
                self.parameters[place].grad = self._views[place]
        self._cleared = self._versions() if self.touched else self._changes
        self._added = self._everything

    def take(self) -> Share:
        """What has been added, which is cleared."""
        share = Share(self.gradients.clone(), self._untouched())
        self.gradients.fill_(NOTHING)
        self._cleared = self._changes
        return share

    def add(self, share: Share) -> None:
        """Add other gradients, as autograd does."""
        self.gradients += share.gradients
        self._added &= share.absent

    def norm(self) -> Tensor:
        """The norm of all gradients (summed in float64)."""
        parts = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in self.gradients.split(MOST)]
        return torch.linalg.vector_norm(torch.stack(parts)).float()

    def scale(self, norm: Tensor, limit: float) -> None:
        """Gradients of this norm are made ones of the norm `limit`, none larger: as torch.nn.utils.clip_grad_norm_."""
        self.gradients *= (limit / (norm + 1e-6)).clamp(max=1.0)

    def _untouched(self) -> frozenset[int]:
        """The places of those that autograd has not reached since they were cleared."""
        self._changes = self._versions()
        return frozenset(compress(count(), map(eq, self._changes, self._cleared)))

    def _versions(self) -> list[int]:
        return [view._version for view in self._views]


def _by_shape(parameters: Iterable[Parameter]) -> Sequence[Parameter]:
    alike = defaultdict(list)
    for parameter in parameters:
        alike[parameter.shape].append(parameter)
    return [parameter for own in alike.values() for parameter in own]
