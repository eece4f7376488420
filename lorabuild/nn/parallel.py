"""Work on an update in several processes: each takes its share of the micro-batches, and all get the same gradients."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lorabuild.errors import Interrupted, JobError, UserError
from lorabuild.nn.batches import MicroBatch
from lorabuild.nn.flat import Flat, Share

# Forward and backward of a part of a micro-batch (its number in the update): adds to the gradients, gives its loss, a
# number on the device that nobody has waited for.
Work = Callable[[int, slice], Tensor]
Unit = tuple[int, slice]

WHOLE = slice(None)
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
PATIENCE = timedelta(days=7)  # others wait while the first saves, measures or draws; who dies is noticed at once
LOOK_SECONDS = 0.05


def units(sizes: Sequence[int], count: int) -> list[Unit]:
    """What an update's micro-batches of these `sizes` are dealt in, in order: each whole, or cut if they are fewer than
    `count`."""
    parts = -(-count // len(sizes))
    found = []
    for micro, size in enumerate(sizes):
        number = min(parts, size)
        bounds = [size * part // number for part in range(number + 1)]
        cuts = [slice(start, end) for start, end in pairwise(bounds)]
        found += [(micro, cut) for cut in (cuts if number > 1 else [WHOLE])]
    return found


def part_of(batch: MicroBatch, part: slice) -> MicroBatch:
    """Some samples of a micro-batch. It is drawn whole first: pyramid noise is scaled over the batch."""
    if part == WHOLE:
        return batch
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: value if value is None else value[part] for name, value in values.items()})


class Alone:
    """One process, which does it all."""

    leads = True

    def update(self, sizes: Sequence[int], work: Work, flat: Flat) -> Tensor:
        """The losses [n] of an update of micro-batches of these sizes, on the device; the gradients are those of all."""
        return torch.stack([work(micro, WHOLE) for micro in range(len(sizes))])


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `count`. The first leads: it alone writes.

    Gradients are added in the order of the micro-batches, whoever has made them. With `exact` each is kept apart until
    then, and no batch is cut: sums of float32 then are the very sums of one process. Without, each process adds its own
    first, and a micro-batch is cut where there would be less than one for each.
    """

    rank: int
    count: int
    exact: bool
    control: Any  # a process group that takes plain values

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def update(self, sizes: Sequence[int], work: Work, flat: Flat) -> Tensor:
        """As `Alone.update`, in all processes at the same time. Raises JobError in all if one fails."""
        dealt = units(sizes, 1 if self.exact else self.count)
        losses: dict[int, Tensor] = {}
        shares: list[Share] = []
        fault: Exception | None = None
        try:
            for number in range(self.rank, len(dealt), self.count):
                losses[number] = work(*dealt[number])
                if self.exact:
                    shares.append(flat.take())
            if not self.exact and losses:
                shares.append(flat.take())
        except Interrupted:  # the first alone is asked to stop, and ends the others
            raise
        except Exception as error:
            fault = error
            if not isinstance(error, UserError):
                traceback.print_exc()
        read = torch.stack([*losses.values()]).tolist() if losses else []
        own = dict(zip(losses, read, strict=True))
        told = self._exchange({"losses": own, "absent": [share.absent for share in shares], "fault": self._said(fault)})
        if fault is not None:
            raise fault
        if faults := [one["fault"] for one in told if one["fault"]]:
            raise JobError(faults[0])
        order = range(len(dealt)) if self.exact else range(min(self.count, len(dealt)))
        for number in order:
            owner, turn = number % self.count, number // self.count
            gradients = shares[turn].gradients if owner == self.rank else torch.empty_like(flat.gradients)
            dist.broadcast(gradients, owner)
            flat.add(Share(gradients, told[owner]["absent"][turn]))
        values: Mapping[int, float] = {number: loss for one in told for number, loss in one["losses"].items()}
        return flat.numbers.new_tensor([values[number] for number in range(len(dealt))])

    def _said(self, fault: Exception | None) -> str:
        if fault is None or isinstance(fault, UserError):
            return str(fault or "")
        first = (str(fault).splitlines() or [""])[0]
        return f"process {self.rank + 1} of {self.count}: {type(fault).__name__}: {first}"

    def _exchange(self, said: Mapping[str, Any]) -> list[Any]:
        """What each process says."""
        told: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(told, said, group=self.control)
        except RuntimeError as error:
            raise Lost(str(error)) from None
        return told


class Lost(JobError):
    """Another process is gone."""


@contextmanager
def joined(
    meeting: Path, rank: int, count: int, device: str, look: Callable[[], None] = lambda: None
) -> Iterator[Ranks]:
    """Meet the others at the file `meeting`, which is of this training alone, and be one of the `count` processes.

    Until all have come, `look` is called now and then, which raises an error if one cannot come.
    """
    if loopback := LOOPBACK.get(sys.platform):  # all are on this machine, whatever its name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    store = dist.FileStore(str(meeting), count)
    store.add("here", 1)
    while store.add("here", 0) < count:
        look()
        time.sleep(LOOK_SECONDS)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    try:
        yield Ranks(rank, count, device == "cpu", dist.new_group(backend="gloo", timeout=PATIENCE))
    finally:
        dist.destroy_process_group()
