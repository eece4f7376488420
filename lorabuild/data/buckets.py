"""Choose the bucket of an image, and how it is resized and cropped into it, as sd-scripts does.

A bucket is a width and height in pixels that training batches share. All sizes here are (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Size = tuple[int, int]

PIXELS_PER_LATENT = 8  # the VAE of SDXL halves an image three times
MAX_PIXELS = 178_956_970  # PIL's limit for opening an image: one of 1x2000 px covering a bucket would be beyond it


@dataclass(frozen=True)
class Geometry:
    """An image is scaled to `resized`; of that, `bucket` is kept, starting at `crop` (left, top)."""

    resized: Size
    bucket: Size
    crop: tuple[int, int]


def geometry(size: Size, settings: Mapping[str, Any]) -> Geometry:
    """What becomes of an image of this size under these `[dataset]` settings.

    Raises ValueError, in words for the user, if the image is too small or too long for any bucket.
    """
    if settings["enable_bucket"] and settings["bucket_no_upscale"]:
        resized, bucket = shrink_only(size, settings["resolution"], settings["bucket_reso_steps"])
    else:
        bucket = nearest_bucket(size, buckets(settings))
        resized = cover(size, bucket)
    if math.prod(resized) > MAX_PIXELS:
        raise ValueError(f"{_x(size)} is too long for any bucket: it would be resized to {_x(resized)}")
    return Geometry(resized, bucket, centre_crop(resized, bucket))


def settings_problem(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with the bucket settings of a `[dataset]` table taken together; None if they fit."""
    resolution, steps = settings["resolution"], settings["bucket_reso_steps"]
    if not settings["enable_bucket"]:
        if any(side % PIXELS_PER_LATENT for side in resolution):
            return f"resolution {_x(resolution)}: without buckets both sides must be multiples of {PIXELS_PER_LATENT}"
        return None
    if steps % PIXELS_PER_LATENT:
        return f"bucket_reso_steps {steps}: must be a multiple of {PIXELS_PER_LATENT}"
    low, high = side_limits(settings)
    if min(resolution) < max(low, steps):
        return f"resolution {_x(resolution)}: a side is below {max(low, steps)} (min_bucket_reso, bucket_reso_steps)"
    if max(resolution) > high:
        return f"resolution {_x(resolution)}: a side is above {high} (max_bucket_reso)"
    return None


def buckets(settings: Mapping[str, Any]) -> Sequence[Size]:
    """The buckets that these settings allow: one, the resolution itself, unless `enable_bucket`."""
    if not settings["enable_bucket"]:
        width, height = settings["resolution"]
        return ((width, height),)
    return bucket_table(tuple(settings["resolution"]), *side_limits(settings), settings["bucket_reso_steps"])


def side_limits(settings: Mapping[str, Any]) -> tuple[int, int]:
    """The shortest and the longest side of a bucket: as set, rounded outwards to whole steps."""
    steps = settings["bucket_reso_steps"]
    return settings["min_bucket_reso"] // steps * steps, -(-settings["max_bucket_reso"] // steps) * steps


@lru_cache(maxsize=32)  # asked for each image
def bucket_table(resolution: Size, shortest: int, longest: int, steps: int) -> Sequence[Size]:
    """All buckets with about the area of `resolution`, sorted, each with its transpose.

    Sides are multiples of `steps` (pixels) from `shortest` to `longest`, which are such multiples themselves. `longest`
    limits the long side also where the area would allow more: at 1024 a 2:3 photo trains with 0.7 of the area.
    """
    area = math.prod(resolution)
    square = int(math.sqrt(area) // steps) * steps
    table = {(square, square)}
    for width in range(shortest, longest + 1, steps):
        height = min(longest, area // width // steps * steps)
        if height >= shortest:
            table |= {(width, height), (height, width)}
    return tuple(sorted(table))


def nearest_bucket(size: Size, table: Sequence[Size]) -> Size:
    """The image's own size if that is a bucket, else the bucket nearest in width / height; the first of equals.

    The distance is that of the ratios, not of their logarithms: a picture and its transpose may get buckets that are
    not transposes of each other.
    """
    if size in table:
        return size
    ratio = size[0] / size[1]
    return min(table, key=lambda bucket: abs(bucket[0] / bucket[1] - ratio))


def cover(size: Size, bucket: Size) -> Size:
    """`size` scaled so that it just covers `bucket`."""
    width, height = size
    wider = width / height > bucket[0] / bucket[1]
    scale = bucket[1] / height if wider else bucket[0] / width
    return _round(width * scale), _round(height * scale)


def shrink_only(size: Size, resolution: Sequence[int], steps: int) -> tuple[Size, Size]:
    """(resized, bucket) of `bucket_no_upscale`: shrunk to the area of `resolution` if larger, never enlarged.

    The bucket is what remains after rounding down to whole steps. Of the two ways to shrink, width first or height
    first, the one is taken that changes the ratio less. Raises ValueError if a side is shorter than one step.
    """
    resized, area = size, math.prod(resolution)
    if math.prod(size) > area:
        ratio = size[0] / size[1]
        ideal_width = math.sqrt(area * ratio)
        width, height = _floor(_round(ideal_width), steps), _floor(_round(area / ideal_width), steps)
        height_of_width, width_of_height = _floor(_round(width / ratio), steps), _floor(_round(height * ratio), steps)
        if 0 in (height, height_of_width):
            raise _too_small(size, steps)
        if abs(width / height_of_width - ratio) < abs(width_of_height / height - ratio):
            resized = width, _round(width / ratio)
        else:
            resized = _round(height * ratio), height
    bucket = _floor(resized[0], steps), _floor(resized[1], steps)
    if 0 in bucket:
        raise _too_small(size, steps)
    return resized, bucket


def centre_crop(resized: Size, bucket: Size) -> tuple[int, int]:
    """(left, top) of the middle `bucket` pixels of an image of `resized` pixels, rounded down."""
    return (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2


def peer_crop(size: Size, bucket: Size, flip: bool) -> tuple[int, int]:
    """(left, top) of the crop that sd-scripts tells SDXL of an image of `size` in `bucket`.

    Not the crop that is made: there the image lies within the bucket, so that the offset is on the axis that is not cut.
    """
    ratio = size[0] / size[1]
    wider = bucket[0] / bucket[1] > ratio
    width, height = (bucket[1] * ratio, bucket[1]) if wider else (bucket[0], bucket[0] / ratio)
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return (int(bucket[0] - (left + width)), int(top)) if flip else (int(left), int(top))


def _too_small(size: Size, steps: int) -> ValueError:
    return ValueError(f"{_x(size)} is smaller than one bucket step ({steps} px), and bucket_no_upscale keeps it so")


def _round(length: float) -> int:
    return int(length + 0.5)


def _floor(length: int, steps: int) -> int:
    return length // steps * steps


def _x(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
