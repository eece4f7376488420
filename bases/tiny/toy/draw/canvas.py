"""A square to draw on in lengths of its side, several times finer than the picture that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from PIL import Image, ImageDraw

from toy.traits import Rgb

Point = tuple[float, float]
FINER = 3  # pixels drawn a pixel, each way
INK: Rgb = (25, 20, 30)


class Canvas:
    """Polygons, ellipses and lines at places 0 … 1, with an outline `outline` wide; `y` grows downwards."""

    def __init__(self, size: int, ground: Rgb, outline: float = 0.0) -> None:
        self.side = size * FINER
        self.image = Image.new("RGB", (self.side, self.side), ground)
        self.outline = outline
        self._draw = ImageDraw.Draw(self.image)

    def blank(self, ground: Rgb) -> Canvas:
        """Another of the same size, without outlines."""
        return Canvas(self.side // FINER, ground)

    def _px(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.side, y * self.side) for x, y in points]

    def polygon(self, points: Sequence[Point], fill: Rgb) -> None:
        self._draw.polygon(self._px(points), fill)
        if self.outline:
            self.line([*points, points[0], points[1]], INK, self.outline)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Rgb, outlined: bool = True) -> None:
        box = self._px([(x - rx, y - ry), (x + rx, y + ry)])
        width = ceil(self.outline * self.side) if outlined else 0
        self._draw.ellipse([*box[0], *box[1]], fill, INK if width else None, width or 1)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Rgb) -> None:
        (x, y), (x2, y2) = self._px([(left, top), (right, bottom)])
        self._draw.rectangle([x, y, x2, y2], fill)

    def line(self, points: Sequence[Point], fill: Rgb, width: float) -> None:
        self._draw.line(self._px(points), fill, ceil(width * self.side), joint="curve")

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Rgb, width: float) -> None:
        """Part of an ellipse, from `start` to `end` degrees, clockwise from the right."""
        box = self._px([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.arc([*box[0], *box[1]], start, end, fill, ceil(width * self.side))

    def pie(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Rgb) -> None:
        box = self._px([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.pieslice([*box[0], *box[1]], start, end, fill)

    def paste_within(self, other: Canvas, points: Sequence[Point]) -> None:
        """Take `other`'s pixels inside the polygon `points`."""
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon(self._px(points), fill=255)
        self.image.paste(other.image, (0, 0), mask)


def shaded(color: Rgb, factor: float) -> Rgb:
    """Darker (below 1) or lighter."""
    red, green, blue = (min(255, int(value * factor)) for value in color)
    return red, green, blue
