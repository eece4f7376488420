"""What dropout draws: a function of seed, update, micro-batch, layer and purpose, so that a resumed run draws the same."""

from __future__ import annotations

import torch
from torch import Tensor

from lorabuild.streams import python_random, stream_seed


class Chance:
    """The draws of one adapter. `moment` says which micro-batch it is; None: nothing is dropped, as when measuring.

    `drops` says only whether there is one: what asks no more than that can be compiled once for all micro-batches.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.moment = None

    @property
    def moment(self) -> tuple[int, ...] | None:
        return self._moment

    @moment.setter
    def moment(self, moment: tuple[int, ...] | None) -> None:
        self._moment, self.drops = moment, moment is not None

    def happens(self, probability: float, purpose: str, name: str) -> bool:
        return python_random(self.seed, purpose, *self._now(), name).random() < probability

    def number(self, below: int, purpose: str, name: str) -> int:
        return python_random(self.seed, purpose, *self._now(), name).randrange(below)

    def kept(self, size: tuple[int, ...], probability: float, purpose: str, name: str, device: torch.device) -> Tensor:
        """1 where something stays, 0 where it is dropped with `probability`. Drawn on the device: it may be large."""
        stream = torch.Generator(device).manual_seed(stream_seed(self.seed, purpose, *self._now(), name))
        return (torch.rand(size, generator=stream, device=device) >= probability).float()

    def _now(self) -> tuple[int, ...]:
        assert self._moment is not None
        return self._moment
