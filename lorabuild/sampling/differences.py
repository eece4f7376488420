"""How much pictures of one prompt differ: the mean absolute difference of their values, of 255."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DIGITS = 4  # of a difference: far below what an eye, or one value of one pixel of a thumbnail, tells apart


def pairs(sides: Sequence[str], steps: Sequence[str], others: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which pictures of a prompt are compared: (role, with which).

    All `sides` with each other; each of `steps`, in their order, with all sides and with the step before; `others`, role
    -> the one that it is made of.
    """
    found = [(role, other) for place, role in enumerate(sides) for other in sides[:place]]
    for place, step in enumerate(steps):
        found += [(step, other) for other in (*sides, *steps[max(0, place - 1) : place])]
    return found + list(others.items())


def differences(pictures: Mapping[str, bytes], compared: Iterable[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Role -> other role -> mean absolute difference over pixels and channels, 0 to 255. Pictures are PNGs of one size."""

    @cache
    def opened(role: str) -> np.ndarray:
        return pixels_of(pictures[role])

    found: dict[str, dict[str, float]] = {}
    for role, other in compared:
        found.setdefault(role, {})[other] = mean_difference(opened(role), opened(other))
    return found


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    """The mean of |one - other|, of uint8 [h, w, 3]: a sum of whole numbers, so that it is equal everywhere."""
    import numpy as np

    total = int(np.abs(one.astype(np.int16) - other.astype(np.int16)).sum(dtype=np.int64))
    return round(total / one.size, DIGITS)


def pixels_of(picture: bytes) -> np.ndarray:
    """uint8 [h, w, 3] of a PNG."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(BytesIO(picture)).convert("RGB"))
