"""Resize pictures as sd-scripts does: by area or Lanczos, or by the interpolation that a data set asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from lorabuild.data.buckets import Size

    Tap = tuple[np.ndarray, np.ndarray]  # for each new pixel an old one's index [n], and its weight [n] float32

CUBIC = -0.75  # the slope at distance 1, as OpenCV has it; PIL's and most others' is -0.5


def own_interpolation(size: Size, resized: Size, wanted: str | None) -> str | None:
    """`wanted`, unless it says what would be done anyway: then, and without a resize, None."""
    return None if size == resized or wanted == _usual(size, resized) else wanted


def resize_window(image: Image, resized: Size, window: tuple[slice, slice], interpolation: str | None) -> np.ndarray:
    """The rows and columns `window` of `image` resized to `resized`: uint8 [h, w, 3], or [h, w] of a grey one.

    By default area means where no side grows, else Lanczos. "lanczos" and "box" are PIL's, which widen their filter
    where they shrink. The others are OpenCV's, which do not: they pick single pixels of a large picture.
    """
    import numpy as np
    from PIL.Image import Resampling

    if image.size == resized:
        return np.asarray(image)[window]
    name = interpolation or _usual(image.size, resized)
    if name in ("lanczos", "box"):
        return np.asarray(image.resize(resized, Resampling[name.upper()]))[window]
    if name == "area" and _usual(image.size, resized) != "area":
        name = "enlarged area"
    pixels = np.asarray(image)
    pixels = _weighted(pixels if pixels.ndim == 3 else pixels[:, :, None], resized[1], window[0], name)
    pixels = _weighted(pixels.swapaxes(0, 1), resized[0], window[1], name).swapaxes(0, 1)
    pixels = np.rint(pixels).clip(0, 255).astype(np.uint8)
    return pixels if image.mode == "RGB" else pixels[:, :, 0]


def _usual(size: Size, resized: Size) -> str:
    return "area" if size[0] >= resized[0] and size[1] >= resized[1] else "lanczos"


def _weighted(pixels: np.ndarray, length: int, part: slice, name: str) -> np.ndarray:
    """Axis 0 of `pixels` [L, m, c] resized to `length`, of which `part`: float32."""
    import numpy as np

    places = np.arange(part.start, part.stop)
    total = np.zeros((len(places), *pixels.shape[1:]), np.float32)
    for rows, weights in TAPS[name](places, len(pixels), length):
        total += weights[:, None, None] * pixels[rows.clip(0, len(pixels) - 1)]
    return total


def _area(places: np.ndarray, old: int, new: int) -> Iterator[Tap]:
    """The mean of the pixels that the new one covers, each by the share that is covered."""
    import numpy as np

    scale = old / new
    starts = places * scale
    for offset in range(int(np.ceil(scale)) + 1):
        rows = np.floor(starts).astype(np.intp) + offset
        covered = np.minimum(starts + scale, rows + 1) - np.maximum(starts, rows)
        yield rows, (covered.clip(0) / scale).astype(np.float32)


def _nearest(places: np.ndarray, old: int, new: int) -> Iterator[Tap]:
    import numpy as np

    yield np.floor(places * (old / new)).astype(np.intp), np.ones(len(places), np.float32)


def _bilinear(places: np.ndarray, old: int, new: int) -> Iterator[Tap]:
    rows, beyond = _split((places + 0.5) * (old / new) - 0.5)
    yield from ((rows, 1 - beyond), (rows + 1, beyond))


def _enlarged_area(places: np.ndarray, old: int, new: int) -> Iterator[Tap]:
    """OpenCV's area where a side grows: a step with a ramp one new pixel wide."""
    import numpy as np

    rows = np.floor(places * (old / new)).astype(np.intp)
    beyond = (places + 1) - (rows + 1) * (new / old)
    beyond = np.where(beyond <= 0, 0, beyond - np.floor(beyond)).astype(np.float32)
    yield from ((rows, 1 - beyond), (rows + 1, beyond))


def _bicubic(places: np.ndarray, old: int, new: int) -> Iterator[Tap]:
    """Four pixels, weighted by their distance (Keys 1981, eq. 4 with a = -0.75)."""
    rows, beyond = _split((places + 0.5) * (old / new) - 0.5)
    for offset in (-1, 0, 1, 2):
        x = abs(offset - beyond)
        near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
        far = CUBIC * (((x - 5) * x + 8) * x - 4)
        yield rows + offset, near * (x <= 1) + far * (x > 1)


def _split(centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole pixels, and how far beyond their middle."""
    import numpy as np

    rows = np.floor(centres)
    return rows.astype(np.intp), (centres - rows).astype(np.float32)


TAPS = {
    "area": _area,
    "enlarged area": _enlarged_area,
    "nearest": _nearest,
    "bilinear": _bilinear,
    "bicubic": _bicubic,
}
NAMES = ("lanczos", "box", "area", "nearest", "bilinear", "bicubic")
