"""Read colours back from a picture: does it show the body and the background that its caption names?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from toy.traits import BACKGROUNDS, COLORS, Rgb

# Where colours are told, in sides. In plain pictures a body covers the middle whatever its kind and place, and eyes and
# mouth are less than half of that; limbs, ears and hats do not reach the upper corners and the strips below them.
BODY = (slice(0.36, 0.86), slice(0.32, 0.68))  # rows, columns
EDGES = ((slice(0.0, 0.3), slice(0.0, 0.07)), (slice(0.0, 0.3), slice(0.93, 1.0)))


def body_color(picture: np.ndarray) -> str:
    """The name of the commonest colour of the middle; `picture`: uint8 [side, side, 3]."""
    return _commonest([_part(picture, *BODY)], COLORS)


def background_color(picture: np.ndarray) -> str:
    """The name of the commonest colour of both sides at the top."""
    return _commonest([_part(picture, *place) for place in EDGES], BACKGROUNDS)


def _part(picture: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    side = len(picture)
    return picture[*(slice(int(part.start * side), int(part.stop * side)) for part in (rows, columns))]


def _commonest(parts: list[np.ndarray], palette: Mapping[str, Rgb]) -> str:
    pixels = np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.int32)
    values = np.array(list(palette.values()))
    nearest = np.square(pixels[:, None] - values).sum(2).argmin(1)
    return list(palette)[Counter(nearest.tolist()).most_common(1)[0][0]]
