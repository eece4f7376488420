"""Step parameters that lie one after another as one: a call costs more than the numbers of a small tensor do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

MOST = 2**20  # numbers of a run: 4 MB, which stay in a processor's cache and are little beside any model
SCATTERED = 1 / 4  # where there are so many runs for a parameter, or more, copies of all side by side are faster
State = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Parameters that are stepped as one, as they have had equally many updates.

    `numbers`, `gradients` and each of `moments` are all of theirs, one after another [n]: where they lie, or `copied`.
    `stacks` are the same gradients, neighbours of one shape together [count, *shape]. `states` are the optimizer's.
    """

    parameters: list[Tensor]
    states: list[State]
    numbers: Tensor
    gradients: Tensor
    moments: dict[str, Tensor]
    stacks: list[Tensor]
    copied: bool

    @property
    def count(self) -> int:
        return self.states[0]["step"]


class RunOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer whose `update` is told how to step a run, and may use its gradients up.

    What it remembers is kept for each parameter: `step`, the updates that it has had, and `moments`, at first 0.
    """

    moments: tuple[str, ...] = ()
    arrangement: Callable[[], Any] | None = None  # equal as long as gradients lie where they lay; None: nobody knows

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]):
        super().__init__(params, defaults)
        self._known: dict[int, tuple[Any, list[Run]]] = {}

    @abstractmethod
    def update(self, group: dict[str, Any], run: Run) -> None:
        """Step it. Its `count` has this update in it."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            for run in self._runs(number, group["params"]):
                for state in run.states:
                    state["step"] += 1
                self.update(group, run)
                if run.copied:
                    pieces = run.numbers.split([parameter.numel() for parameter in run.parameters])
                    views = [piece.view_as(one) for one, piece in zip(run.parameters, pieces, strict=True)]
                    torch._foreach_copy_(run.parameters, views)
        return loss

    def _runs(self, number: int, parameters: Sequence[Tensor]) -> list[Run]:
        """Those of a group: of the last update, if gradients lie where they lay, and nobody has put in another state."""
        now = self.arrangement and self.arrangement()
        before, runs = self._known.get(number, (None, []))
        if now is None or now != before or not all(run.states[0] is self.state.get(run.parameters[0]) for run in runs):
            runs = self._found([parameter for parameter in parameters if parameter.grad is not None])
            self._known.pop(number, None)
            if not any(run.copied for run in runs):
                self._known[number] = now, runs
        return runs

    def _found(self, parameters: Sequence[Tensor]) -> list[Run]:
        counts = {parameter: int(self.state.get(parameter, {}).get("step", 0)) for parameter in parameters}
        if all(one.is_contiguous() and one.grad.is_contiguous() for one in parameters):
            parts = list(_neighbours(sorted(parameters, key=lambda one: one.data_ptr()), counts))
            if len(parts) == 1 or len(parts) < SCATTERED * len(parameters):
                return [self._run(part, copied=False) for part in parts]
        alike = sorted(range(len(parameters)), key=lambda place: (counts[parameters[place]], parameters[place].shape))
        by_count = groupby((parameters[place] for place in alike), key=lambda one: (counts[one], one.dtype, one.device))
        return [self._run(part, copied=True) for _, own in by_count for part in _cut(own)]

    def _run(self, parameters: list[Tensor], copied: bool) -> Run:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state |= {"step": 0} | {key: torch.zeros_like(parameter) for key in self.moments}
        moments = {key: _laid_together(states, key) for key in self.moments}
        line = _copy if copied else _line
        gradients = line([parameter.grad for parameter in parameters])
        stacks = _stacks(gradients, [parameter.shape for parameter in parameters])
        return Run(parameters, states, line(parameters), gradients, moments, stacks, copied)


def _neighbours(parameters: Sequence[Tensor], counts: Mapping[Tensor, int]) -> Iterator[list[Tensor]]:
    """Parameters in the order of their places, by what lies one after another, as gradients do, up to MOST numbers."""
    own: list[Tensor] = []
    size, following = 0, None
    for parameter in parameters:
        size += parameter.numel()
        length = parameter.numel() * parameter.element_size()
        place, gradient, kind = parameter.data_ptr(), parameter.grad.data_ptr(), (counts[parameter], parameter.dtype)
        if own and not (size <= MOST and (place, gradient, kind) == following):
            yield from _of_one_block(own)
            own, size = [], parameter.numel()
        own.append(parameter)
        following = place + length, gradient + length, kind
    if own:
        yield from _of_one_block(own)


def _of_one_block(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Neighbours together, or each by itself where they are some by accident, of several blocks of memory."""
    gradients = [parameter.grad for parameter in parameters]
    return [parameters] if _one_block(parameters) and _one_block(gradients) else [[one] for one in parameters]


def _one_block(tensors: Sequence[Tensor]) -> bool:
    return tensors[0].untyped_storage().data_ptr() == tensors[-1].untyped_storage().data_ptr()


def _cut(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parts of one parameter, or of up to MOST numbers."""
    own: list[Tensor] = []
    size = 0
    for parameter in parameters:
        size += parameter.numel()
        if own and size > MOST:
            yield own
            own, size = [], parameter.numel()
        own.append(parameter)
    yield own


def _line(tensors: Sequence[Tensor]) -> Tensor:
    """The numbers [n] of neighbours, where they lie."""
    return tensors[0].detach().as_strided((sum(tensor.numel() for tensor in tensors),), (1,))


def _copy(tensors: Sequence[Tensor]) -> Tensor:
    """The numbers [n] of tensors that lie anywhere."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _laid_together(states: Sequence[State], key: str) -> Tensor:
    """The line of what the states have under `key`, which is moved together unless it lies so."""
    tensors = [state[key] for state in states]
    ends = [tensor.data_ptr() + tensor.numel() * tensor.element_size() for tensor in tensors]
    if (
        _one_block(tensors)
        and all(tensor.data_ptr() == end for tensor, end in zip(tensors[1:], ends, strict=False))
        and all(tensor.is_contiguous() for tensor in tensors)
    ):
        return _line(tensors)
    moved = _copy(tensors)
    for state, tensor, piece in zip(states, tensors, moved.split([one.numel() for one in tensors]), strict=True):
        state[key] = piece.view_as(tensor)
    return moved


def _stacks(line: Tensor, shapes: Iterable[torch.Size]) -> list[Tensor]:
    """The parts of a line that are neighbours of one shape: [count, *shape] each."""
    found, start = [], 0
    for shape, own in groupby(shapes):
        count = len(list(own))
        end = start + count * shape.numel()
        found.append(line[start:end].view(count, *shape))
        start = end
    return found
