"""Work on many small tensors as on few larger ones: on a processor a call costs more than their numbers do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

MOST = 2**20  # numbers of a stack: 4 MB, which stay in a processor's cache and are little beside any model


def stacks(tensors: Sequence[Tensor], most: float = MOST) -> Iterator[list[int]]:
    """The places of all `tensors`, in parts of one shape, dtype and device, each of one tensor or of up to `most` numbers."""
    alike = defaultdict(list)
    for place, tensor in enumerate(tensors):
        alike[tensor.shape, tensor.dtype, tensor.device].append(place)
    for (shape, *_), places in alike.items():
        count = int(max(1, min(len(places), most // max(1, shape.numel()))))
        for start in range(0, len(places), count):
            yield places[start : start + count]


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """[n, *shape]: the tensors themselves, where they lie one after another in memory, else a copy of them."""
    first, last = tensors[0].detach(), tensors[-1]
    if len(tensors) == 1:
        return first[None]
    start, size = first.data_ptr(), first.numel() * first.element_size()
    one_block = first.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()  # no neighbours by accident
    if one_block and all(t.data_ptr() == start + n * size and t.is_contiguous() for n, t in enumerate(tensors)):
        return first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()))
    return torch.stack(list(tensors))


def is_copy(stack: Tensor, tensors: Sequence[Tensor]) -> bool:
    return stack.data_ptr() != tensors[0].data_ptr()


def lay_together(parameters: Sequence[Parameter]) -> None:
    """Move those of one shape one after another, in their order: to stack neighbours then copies nothing."""
    for part in stacks(parameters, float("inf")):
        alike = [parameters[place] for place in part]
        for parameter, one in zip(alike, torch.stack([parameter.detach() for parameter in alike]), strict=True):
            parameter.data = one


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all numbers of all tensors, which lie on one device (summed in float64)."""
    parts = (stacked([tensors[place] for place in part]) for part in stacks(tensors))
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    return torch.linalg.vector_norm(torch.stack(norms)).float() if norms else torch.zeros(())
