"""Follow a training by the records of its log: a line of progress, and events for TensorBoard."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from lorabuild.events import Events, scalars
from lorabuild.workspace import Progress

SMOOTHED = 10  # updates, at least, that a mean loss is of, and that the speed is measured over


class Watch:
    """Told of each record as it is made, it tells of the progress.

    `epoch`: the updates that a pass over the data takes. loss/average is the mean over the last pass, and over SMOOTHED
    updates at least.
    """

    def __init__(
        self, progress: Progress, events: Events, epoch: Fraction, clock: Callable[[], float] = time.monotonic
    ):
        self._progress, self._events, self._epoch, self._clock = progress, events, epoch, clock
        self._recent: deque[float] = deque(maxlen=max(SMOOTHED, -(-epoch.numerator // epoch.denominator)))
        self._of_epoch: list[float] = []
        self._seen = deque([(clock(), 0)], maxlen=SMOOTHED + 1)  # when, and how many images were done of late
        self._step = 0
        self._last: Mapping[str, Any] = {}
        self._held_out: float | None = None

    def logged(self, record: Mapping[str, Any]) -> None:
        """A record was made, now or in the run that this one goes on from."""
        if record["event"] == "step":
            self._step, self._last = record["step"], record
            if record["loss"] is not None:
                self._recent.append(record["loss"])
                self._of_epoch.append(record["loss"])
        else:
            self._held_out = record["loss"]
        self._events.write(self._step, scalars(record, self._average()))
        if record["event"] == "step":
            self._end_epoch()

    def progress(self, done: int, total: int, text: str) -> None:
        """Pass on how far it is, with what there is to say."""
        self._seen.append((self._clock(), self._seen[-1][1] + self._last["images"]))
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        speed = f"{(after - before) / (end - start):.3g} images/s" if end > start else ""
        self._progress(done, total, "  ".join(filter(None, [*self._losses(), self._rates(), speed])))

    def _losses(self) -> list[str]:
        average, loss = self._average(), self._last["loss"]
        told = [f"loss {loss:.4f} (mean {average:.4f})" if loss is not None else "loss: overflow"]
        return told + ([f"held out {self._held_out:.4f}"] if self._held_out is not None else [])

    def _rates(self) -> str:
        """One number where all parts have the same rate."""
        rates = dict.fromkeys(f"{rate:.3g}" for rate in self._last["lr"].values() if rate)
        return f"lr {'/'.join(rates) or 0}"

    def _average(self) -> float | None:
        return sum(self._recent) / len(self._recent) if self._recent else None

    def _end_epoch(self) -> None:
        """loss/epoch_average counts epochs, not updates, as sd-scripts' does."""
        passes = int(self._step / self._epoch)
        if passes > int((self._step - 1) / self._epoch) and self._of_epoch:
            self._events.write(passes, {"loss/epoch_average": sum(self._of_epoch) / len(self._of_epoch)})
            self._of_epoch.clear()
