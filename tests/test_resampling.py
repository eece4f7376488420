"""Resizing: OpenCV's interpolations without OpenCV, and the usual way left alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling

from lorabuild.data.resampling import own_interpolation, resize_window

ROWS = json.loads((Path(__file__).parent / "goldens/interpolation.json").read_text())["rows"]


def whole(image: Image.Image, size: tuple[int, int], name: str | None) -> np.ndarray:
    return resize_window(image, size, (slice(0, size[1]), slice(0, size[0])), name)


def source() -> Image.Image:
    y, x = np.mgrid[:5, :7]
    return Image.fromarray(np.stack([x * 40, y * 60, (7 * x + 13 * y) * 9], -1).astype(np.uint8))


@pytest.mark.parametrize(("name", "size", "expected"), ROWS, ids=lambda value: str(value)[:12])
def test_pixels_are_opencvs(name: str, size: list[int], expected: list):
    found = whole(source(), tuple(size), name)
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["lanczos", "box"])
def test_lanczos_and_box_are_pils(name: str):
    expected = np.asarray(source().resize((4, 9), Resampling[name.upper()]))
    assert np.array_equal(whole(source(), (4, 9), name), expected)


@pytest.mark.parametrize("name", ["lanczos", "area", "nearest", "bicubic"])
def test_a_grey_picture_is_one_channel_of_a_coloured_one(name: str):
    assert np.array_equal(whole(source().getchannel("G"), (4, 3), name), whole(source(), (4, 3), name)[:, :, 1])


def test_what_would_be_done_anyway_is_no_choice():
    assert own_interpolation((64, 64), (64, 64), "bicubic") is None
    assert own_interpolation((64, 64), (32, 32), "area") is None
    assert own_interpolation((64, 64), (32, 32), "lanczos") == "lanczos"
    assert own_interpolation((32, 64), (64, 32), "lanczos") is None
    assert own_interpolation((32, 32), (64, 64), "area") == "area"
    assert own_interpolation((32, 32), (64, 64), None) is None
