"""Draw the things that several blueprints share: trees, peaks, clouds, gulls, water."""

from __future__ import annotations

import math

from drawing.blueprint import BOLD_WIDTH, LINE_WIDTH, THIN, THIN_WIDTH, draft, hatch, ink, ring, thin
from drawing.canvas import Canvas, Point, curve, ellipse


def tree(canvas: Canvas, height: float) -> None:
    """A round tree that stands at the origin."""
    unit = canvas.at(0, 0, height / 100)
    width = 100 / height
    trunk = curve([(-9, 0), (-9, 0), (-5, -30), (-7, -50), (7, -50), (5, -30), (9, 0), (9, 0)])
    draft(unit, trunk, LINE_WIDTH * width)
    crown = [
        point
        for degrees in range(-90, 270, 40)
        for point in ellipse(*_on_crown(degrees), 12, start=degrees - 60, stop=degrees + 60)
    ]
    draft(unit, crown, BOLD_WIDTH * width)
    shade = curve([(12, -94), (30, -80), (34, -60), (24, -44), (0, -38), (20, -56)])
    hatch(canvas, [(x / width, y / width) for x, y in shade])
    for x, y in ((-18, -74), (-4, -84), (-10, -58)):
        unit.line(ellipse(x, y, 7, 6, 190, 330), THIN_WIDTH * width, THIN)


def pine(canvas: Canvas, height: float) -> None:
    """A small fir that stands at the origin."""
    ink(canvas, [(0, 0), (0, -height * 0.3)])
    draft(canvas, [(0, -height), (height * 0.28, -height * 0.2), (-height * 0.28, -height * 0.2)])


def peak(canvas: Canvas, left: Point, summit: Point, right: Point) -> None:
    """A mountain between its two feet: its right side in shadow, snow on its top."""
    (x, y), height = summit, right[1] - summit[1]
    ridge = [summit, (x + 8, y + 0.3 * height), (x - 3, y + 0.6 * height), (x + 6, right[1])]
    draft(canvas, [left, summit, right], BOLD_WIDTH)
    hatch(canvas, [*ridge, right], 6, 60)
    ink(canvas, ridge)
    edge = (x + 0.34 * (left[0] - x), y + 0.34 * height)
    snow = [edge, (0.7 * edge[0] + 0.3 * x, y + 0.25 * height), (0.4 * edge[0] + 0.6 * x, y + 0.4 * height), ridge[1]]
    ink(canvas, snow)


def smoke(canvas: Canvas, x: float, y: float) -> None:
    """Three rising rings."""
    for dx, dy, radius in ((2, -6, 4), (9, -15, 6), (20, -24, 8)):
        draft(canvas, ellipse(x + dx, y + dy, radius))


def cloud(canvas: Canvas, x: float, y: float) -> None:
    """A small cloud, its middle at (x, y)."""
    left, right = ellipse(x - 16, y, 10, 9, 90, 280), ellipse(x + 16, y, 10, 9, 260, 450)
    draft(canvas, [*left, *ellipse(x - 2, y - 6, 13, 13, 210, 340), *right])


def gull(canvas: Canvas, x: float, y: float) -> None:
    """Two wings."""
    ink(canvas, curve([(x - 11, y - 3), (x - 5, y - 5), (x, y), (x, y), (x + 5, y - 5), (x + 11, y - 3)], closed=False))


def flower(canvas: Canvas, radius: float) -> None:
    """Six petals round a ring at the origin, as on china."""
    for i in range(6):
        angle = math.radians(60 * i)
        draft(canvas, ellipse(radius * math.cos(angle), radius * math.sin(angle), radius * 0.6))
    ring(canvas, 0, 0, radius * 0.55)


def rays(canvas: Canvas, inner: float, outer: float, count: int) -> None:
    """Spokes round the origin: of a wheel, or of the sun."""
    for i in range(count):
        cos, sin = math.cos(math.tau * i / count), math.sin(math.tau * i / count)
        thin(canvas, [(inner * cos, inner * sin), (outer * cos, outer * sin)])


def ripples(canvas: Canvas, y: float, left: float, right: float, rows: int = 3) -> None:
    """Water: a line of small bows, and shorter ones below it."""
    for row in range(rows):
        step, x = 14, left + 9 * row * (2 - row % 2)
        while x + step <= right - 9 * row:
            bow = ellipse(x + step / 2, y + 9 * row - 1, step / 2, 3.2, 180, 0)
            (ink if row == 0 else thin)(canvas, bow)
            x += step * (1 if row == 0 else 2)


def _on_crown(degrees: float) -> Point:
    return 26 * math.cos(math.radians(degrees)), -66 + 22 * math.sin(math.radians(degrees))
