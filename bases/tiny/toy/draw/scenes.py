"""What is behind a creature."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from toy.draw.canvas import Canvas, shaded
from toy.traits import BACKGROUNDS, Picture, Rgb

WHITE: Rgb = (255, 255, 255)
SEA: Rgb = (60, 120, 200)
SNOW: Rgb = (238, 242, 250)
SUN: Rgb = (255, 215, 60)
MOON: Rgb = (235, 235, 245)


def draw_scene(canvas: Canvas, picture: Picture) -> None:
    """The scene and, if there is one, the sun (at night the moon) in a corner."""
    draw = Random(picture.seed)
    SCENES[picture.scene](canvas, BACKGROUNDS[picture.background], draw)
    if picture.sun:
        color = MOON if picture.scene == "night" else SUN
        canvas.ellipse(draw.choice([0.15, 0.85]), 0.15, 0.11, 0.11, color, outlined=False)


def _simple(canvas: Canvas, color: Rgb, draw: Random) -> None:
    pass


def _hill(canvas: Canvas, color: Rgb, draw: Random) -> None:
    for row in range(2):
        x = draw.uniform(0.1, 0.9)
        canvas.ellipse(x, 1.1 + 0.12 * row, 0.6, 0.45, shaded(color, 0.8 - 0.18 * row), outlined=False)


def _clouds(canvas: Canvas, color: Rgb, draw: Random) -> None:
    canvas.box(0, 0.8, 1, 1, shaded(color, 0.65))
    for _ in range(3):
        x, y = draw.uniform(0, 1), draw.uniform(0.05, 0.35)
        for side in (-0.08, 0, 0.08):
            canvas.ellipse(x + side, y, 0.075, 0.07, WHITE, outlined=False)


def _night(canvas: Canvas, color: Rgb, draw: Random) -> None:
    canvas.box(0, 0, 1, 1, shaded(color, 0.35))
    canvas.box(0, 0.8, 1, 1, shaded(color, 0.2))
    for _ in range(12):
        canvas.ellipse(draw.uniform(0, 1), draw.uniform(0, 0.7), 0.018, 0.018, (255, 255, 220), outlined=False)


def _sea(canvas: Canvas, color: Rgb, draw: Random) -> None:
    for row in range(3):
        y, wave = 0.68 + 0.11 * row, shaded(SEA, 1 - 0.18 * row)
        canvas.box(0, y, 1, 1, wave)
        for number in range(7):
            canvas.ellipse((number + 0.5 * (row % 2)) / 6, y, 1 / 12, 0.035, wave, outlined=False)


def _checkered(canvas: Canvas, color: Rgb, draw: Random) -> None:
    fields = 5
    for row in range(fields):
        for column in range((row + 1) % 2, fields, 2):
            left, top = column / fields, row / fields
            canvas.box(left, top, left + 1 / fields, top + 1 / fields, shaded(color, 0.75))


def _city(canvas: Canvas, color: Rgb, draw: Random) -> None:
    x = 0.0
    while x < 1:
        width, height = draw.uniform(0.12, 0.22), draw.uniform(0.3, 0.65)
        canvas.box(x, 1 - height, x + width, 1, shaded(color, draw.uniform(0.5, 0.72)))
        x += width


def _snow(canvas: Canvas, color: Rgb, draw: Random) -> None:
    for _ in range(14):
        canvas.ellipse(draw.uniform(0, 1), draw.uniform(0, 0.8), 0.022, 0.022, WHITE, outlined=False)
    canvas.ellipse(draw.uniform(0.3, 0.7), 1.05, 0.9, 0.25, SNOW, outlined=False)


SCENES: dict[str, Callable[[Canvas, Rgb, Random], None]] = {
    "simple": _simple, "hill": _hill, "clouds": _clouds, "night": _night,
    "sea": _sea, "checkered": _checkered, "city": _city, "snow": _snow,
}  # fmt: skip
