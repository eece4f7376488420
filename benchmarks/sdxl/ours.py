"""Train with our own trainer, and measure where the time and the memory go."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from unittest.mock import patch

import torch

from lorabuild.lora.adapter_shape import Shape, trained_parts
from lorabuild.nn.adapter import adapted
from lorabuild.nn.base import Base, checkpointing
from lorabuild.nn.batches import Data
from lorabuild.nn.latents import open_latents
from lorabuild.nn.trainer import Observer, Training, train
from sdxl.counting import synchronise
from sdxl.inputs import Prepared

GB = 1e9


class Clock(Protocol):
    """Marks moments of a device's own time."""

    def mark(self) -> Any: ...
    def between(self, start: Any, end: Any) -> float:
        """Seconds. What was marked must have happened."""
        ...


class Processor:
    def mark(self) -> float:
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        return end - start


class Cuda:
    """Events in the stream: they cost no waiting, and tell when the device came by."""

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Measured:
    """A training of `images` an update. Times are medians over the updates behind the warm-up."""

    images: int
    update_s: float
    outside_s: float  # of an update: neither forward nor backward
    first_s: float  # from the start to the end of the first update: the loss before, compilation and tuning
    updates: list[float] = field(repr=False)
    memory: dict[str, float] = field(default_factory=dict)  # peaks in GB, by kind

    @property
    def images_a_second(self) -> float:
        return self.images / self.update_s


def measure(base: Base, prepared: Prepared, device: str, warm_up: int, updates: int) -> Measured:
    """`warm_up` updates that are not timed, then `updates` that are; no files are written on the way."""
    recipe, clock = prepared.recipe, Cuda() if device == "cuda" else Processor()
    data = Data(prepared.dataset, open_latents(prepared.latents, device))
    marks: list[Any] = []
    counts: list[int] = []
    with (
        checkpointing(base, bool(prepared.execution.get("gradient_checkpointing"))),
        adapted(base, Shape.of(recipe), recipe["seed"], trained_parts(recipe), device) as adapter,
        _watched(base, clock) as spans,
    ):

        def progress(*_: Any) -> None:
            marks.append(clock.mark())
            counts.append(len(spans))

        observer = Observer(progress=progress, last=warm_up + updates)
        reset_memory(device)
        synchronise(device)
        start = time.perf_counter()
        began = clock.mark()
        train(Training(base, adapter, data, recipe, device), observer, _Nowhere(), None)
        synchronise(device)
        total = time.perf_counter() - start
        memory = peak_memory(device)
    wholes = [clock.between(a, b) for a, b in zip(marks[warm_up - 1 :], marks[warm_up:], strict=False)]
    parts = [spans[a:b] for a, b in zip(counts[warm_up - 1 :], counts[warm_up:], strict=False)]
    inside = [sum(clock.between(*span) for span in part) for part in parts]
    first = clock.between(began, marks[0])
    assert total >= sum(wholes) * 0.99, "the device's clock runs ahead of the processor's"
    return Measured(
        images=recipe["train_batch_size"] * recipe["gradient_accumulation_steps"],
        update_s=statistics.median(wholes),
        outside_s=statistics.median(whole - part for whole, part in zip(wholes, inside, strict=True)),
        first_s=first,
        updates=wholes,
        memory=memory,
    )


def reset_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> dict[str, float]:
    """Peaks in GB: of the device's allocator since the reset, or of this process."""
    if device == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"allocated": allocated / GB, "reserved": reserved / GB}
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB}


class _Nowhere:
    """In the place of a state file: nothing is saved."""

    def due(self) -> bool:
        return False


@contextmanager
def _watched(base: Base, clock: Clock) -> Iterator[list[tuple[Any, Any]]]:
    """(start, end) of each forward of the base's networks, with their adapters, and of each backward.

    What runs within one of them, such as a forward that is computed again, is part of it.
    """
    spans: list[tuple[Any, Any]] = []
    depth = 0

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if depth:
                return work(*args, **kwargs)
            depth, start = 1, clock.mark()
            try:
                return work(*args, **kwargs)
            finally:
                depth = 0
                spans.append((start, clock.mark()))

        return run

    with ExitStack() as stack:
        for network in (base.unet, base.te1, base.te2):
            stack.enter_context(patch.object(network, "forward", timed(network.forward)))
        stack.enter_context(patch.object(torch.Tensor, "backward", timed(torch.Tensor.backward)))
        yield spans
