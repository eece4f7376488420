"""Train by our own stage, and measure where the time and the memory go."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import torch

from lorabuild.errors import JobError
from lorabuild.manifest import Repository
from lorabuild.nn.base import Base
from lorabuild.stage import Job
from lorabuild.stages.train import STAGE as TRAIN
from sdxl.counting import synchronise
from sdxl.inputs import Prepared, run_stage

GB = 1e9


class Clock(Protocol):
    """Marks moments of a device's own time."""

    def mark(self) -> Any: ...
    def between(self, start: Any, end: Any) -> float:
        """Seconds. What was marked must have happened."""
        ...


class Processor:
    """The time that all threads of this process had: neighbours on the machine count little."""

    def mark(self) -> float:
        return time.process_time()

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


def measure(
    base: Base, found: Repository, prepared: Prepared, work: Path, device: str, warm_up: int, updates: int
) -> Measured:
    """Run the stage `train`: `warm_up` updates that are not timed, `updates` that are, and one that ends with a snapshot.

    `base` is warm, so that the stage finds it; the latents of `prepared` and tokenizers lie in `work`.
    """
    clock = Cuda() if device == "cuda" else Processor()
    recipe, count = prepared.recipe, warm_up + updates
    if count >= recipe["max_train_steps"]:
        raise JobError(f"the recipe has {recipe['max_train_steps']} updates: time fewer than {count}")
    marks: list[Any] = []
    counts: list[int] = []

    def short(job: Job) -> Job:
        options = {**job.options, "device": device, "have_rest": True}
        return replace(job, snapshots=[f"step/{count + 1}"], options=options)

    with _watched(base, clock) as spans:

        def progress(done: int, *_: Any) -> None:
            if done == len(marks) + 1:
                marks.append(clock.mark())
                counts.append(len(spans))

        reset_memory(device)
        began = clock.mark()
        run_stage(TRAIN, found, work, prepared.made, short, progress)
        synchronise(device)
    memory = peak_memory(device)
    wholes = [clock.between(a, b) for a, b in pairwise(marks[warm_up - 1 : count])]
    parts = [spans[a:b] for a, b in pairwise(counts[warm_up - 1 : count])]
    outside = [whole - sum(clock.between(*span) for span in part) for whole, part in zip(wholes, parts, strict=True)]
    return Measured(
        images=recipe["train_batch_size"] * recipe["gradient_accumulation_steps"],
        update_s=statistics.median(wholes),
        outside_s=statistics.median(outside),
        first_s=clock.between(began, marks[0]),
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
