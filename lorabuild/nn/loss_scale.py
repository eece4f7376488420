"""Scale a loss so that its gradients do not vanish in fp16, and find the scale at which they do not overflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FIRST = 2.0**16  # the numbers of torch's GradScaler, which sd-scripts trains with
GROWS_AFTER = 2000  # updates in a row without an overflow


@dataclass
class LossScale:
    """The scale of a training: halved by an overflow, doubled after many updates without one (Micikevicius et al. 2018).

    Powers of two: to scale and unscale rounds nothing. Only fp16 has one, `enabled`; else the scale is 1 and stays.
    The same numbers decide in each of several processes, so that all keep the same scale.
    """

    enabled: bool
    scale: float = 1.0
    clean: int = 0  # updates since the scale was changed

    @classmethod
    def of(cls, mixed_precision: str) -> LossScale:
        enabled = mixed_precision == "fp16"
        return cls(enabled, FIRST if enabled else 1.0)

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scale if self.enabled else loss

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Make the gradients those of the loss itself, in place: before their norm is taken or clipped."""
        if self.enabled and gradients:
            torch._foreach_mul_(list(gradients), 1.0 / self.scale)

    def overflowed(self, norm: float) -> bool:
        """Whether gradients of this norm are to be made again, at half the scale.

        At scale 1 nothing is scaled: what is not finite there comes of something else.
        """
        if not self.enabled or math.isfinite(norm) or self.scale <= 1.0:
            return False
        self.scale, self.clean = self.scale / 2, 0
        return True

    def updated(self) -> None:
        """The weights have been updated."""
        if not self.enabled:
            return
        self.clean += 1
        if self.clean >= GROWS_AFTER:
            self.scale, self.clean = self.scale * 2, 0

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "clean": self.clean}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.scale, self.clean = state["scale"], state["clean"]
