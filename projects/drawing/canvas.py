"""Draw smooth shapes with pillow: a picture is drawn four times too large, then scaled down."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

OVERSAMPLING = 4
CURVE_STEPS = 10  # straight pieces between two points of a curve: smooth at the largest scale used here

Point = tuple[float, float]
Points = Sequence[Point]
Colour = tuple[int, int, int] | tuple[int, int, int, int]
Part = tuple[Points, Colour, Sequence[tuple[Points, Colour]]]  # contour, colour, marks that are cut off at the contour


@dataclass(frozen=True)
class Canvas:
    """A picture and the place of a drawing in it: x to the right, y down, in units of `scale` pixels."""

    image: Image.Image
    x: float = 0.0
    y: float = 0.0
    scale: float = float(OVERSAMPLING)
    turn: float = 0.0  # degrees, clockwise
    flip: bool = False

    def at(self, x: float, y: float, scale: float = 1.0, turn: float = 0.0, flip: bool = False) -> Canvas:
        """The same picture with the origin moved to (x, y), then scaled, turned and flipped."""
        ((px, py),) = self.pixels([(x, y)])
        turned = self.turn - turn if self.flip else self.turn + turn
        return Canvas(self.image, px, py, self.scale * scale, turned, self.flip != flip)

    def pixels(self, points: Iterable[Point]) -> list[Point]:
        """Where the points lie in the oversampled picture."""
        cos, sin = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        side = -self.scale if self.flip else self.scale
        return [
            (self.x + cos * side * x - sin * self.scale * y, self.y + sin * side * x + cos * self.scale * y)
            for x, y in points
        ]

    def fill(self, contour: Points, colour: Colour, marks: Sequence[tuple[Points, Colour]] = ()) -> None:
        """Fill a contour; the marks are drawn on it and end at its edge. A fourth colour number is opacity."""
        outer = self.pixels(contour)
        ImageDraw.Draw(self.image, "RGBA").polygon(outer, fill=colour)
        if marks:
            marked, inside = self.image.copy(), Image.new("L", self.image.size)
            for mark, mark_colour in marks:
                ImageDraw.Draw(marked, "RGBA").polygon(self.pixels(mark), fill=mark_colour)
            ImageDraw.Draw(inside).polygon(outer, fill=255)
            self.image.paste(marked, mask=inside)

    def line(self, points: Points, width: float, colour: Colour, closed: bool = False) -> None:
        """A line with round ends and corners."""
        path, radius = self.pixels([*points, points[0]] if closed else points), width * self.scale / 2
        brush = ImageDraw.Draw(self.image)
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            length = math.hypot(x1 - x0, y1 - y0)
            if length > 0:
                dx, dy = (y0 - y1) / length * radius, (x1 - x0) / length * radius
                corners = [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)]
                brush.polygon(corners, fill=colour)
        for x, y in path:
            brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def outlined(self, parts: Sequence[Part], width: float, colour: Colour) -> None:
        """Fill parts that make one body: an outline runs round all of them together, none between them."""
        for contour, _, _ in parts:
            self.line(contour, 2 * width, colour, closed=True)
        for contour, inner, marks in parts:
            self.fill(contour, inner, marks)


def blank(width: int, height: int, colour: Colour) -> Canvas:
    """An empty picture of so many pixels."""
    return Canvas(Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), colour))


def finished(canvas: Canvas) -> Image.Image:
    """The picture in its own size: each pixel is the mean of those drawn for it."""
    return canvas.image.reduce(OVERSAMPLING)


def curve(points: Points, closed: bool = True) -> list[Point]:
    """A smooth line through the points (Catmull and Rom 1974, uniform); a point given twice is a corner."""
    ends = [points[-1], *points, points[0], points[1]] if closed else [points[0], *points, points[-1]]
    pieces = [ends[i : i + 4] for i in range(len(ends) - 3)]
    smooth = [
        _catmull_rom(*piece, step / CURVE_STEPS)
        for piece in pieces
        if piece[1] != piece[2]  # between the two points of a corner the curve would make a loop
        for step in range(CURVE_STEPS)
    ]
    return smooth if closed else [*smooth, points[-1]]


def mirrored(half: Points) -> list[Point]:
    """A closed contour from its right half, which runs from top to bottom."""
    return [*half, *((-x, y) for x, y in reversed(half) if x != 0)]


def ellipse(x: float, y: float, rx: float, ry: float | None = None, start: float = 0, stop: float = 360) -> list[Point]:
    """The ellipse round (x, y), or the arc of it from `start` to `stop` degrees, clockwise from the right."""
    ry = rx if ry is None else ry
    angles = [math.radians(start + (stop - start) * i / 48) for i in range(49)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """The contour of an upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def capsule(start: Point, stop: Point, start_radius: float, stop_radius: float) -> list[Point]:
    """A limb: two circles of their own radius and the straight sides between them."""
    angle = math.degrees(math.atan2(stop[1] - start[1], stop[0] - start[0]))
    return [
        *ellipse(*start, start_radius, start=angle + 90, stop=angle + 270),
        *ellipse(*stop, stop_radius, start=angle - 90, stop=angle + 90),
    ]


def _catmull_rom(before: Point, start: Point, stop: Point, after: Point, t: float) -> Point:
    a, b, c, d = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    return (
        a * before[0] + b * start[0] + c * stop[0] + d * after[0],
        a * before[1] + b * start[1] + c * stop[1] + d * after[1],
    )
