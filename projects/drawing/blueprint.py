"""Draw in the blueprint's manner: white ink on blue paper with a grid, hatching, dimensions and a frame."""

from __future__ import annotations

import math

from drawing.canvas import Canvas, Point, Points, blank, box, ellipse
from PIL import Image, ImageDraw

PAPER = (26, 74, 148)
GRID = (38, 88, 162)
GRID_BOLD = (54, 106, 178)
WASH = (42, 98, 176)  # a drawn thing is a little lighter than the paper and hides what lies behind it
INK = (240, 247, 255)
THIN = (150, 190, 234)
BOLD_WIDTH, LINE_WIDTH, THIN_WIDTH = 2.6, 1.8, 1.0


def sheet(width: int, height: int) -> Canvas:
    """Blue paper with a grid, a frame and a title block in the lower right corner."""
    canvas = blank(width, height, PAPER)
    for step, colour in ((8, GRID), (32, GRID_BOLD)):
        for x in range(step, width, step):
            canvas.line([(x, 0), (x, height)], 0.8, colour)
        for y in range(step, height, step):
            canvas.line([(0, y), (width, y)], 0.8, colour)
    canvas.line(box(6, 6, width - 6, height - 6), LINE_WIDTH, INK, closed=True)
    _title_block(canvas.at(width - 6, height - 6))
    return canvas


def draft(canvas: Canvas, contour: Points, width: float = LINE_WIDTH) -> None:
    """A thing: washed inside, inked round its edge."""
    canvas.fill(contour, WASH)
    canvas.line(contour, width, INK, closed=True)


def ink(canvas: Canvas, points: Points, width: float = LINE_WIDTH) -> None:
    """An open line."""
    canvas.line(points, width, INK)


def thin(canvas: Canvas, points: Points) -> None:
    """A fine line, for detail and construction."""
    canvas.line(points, THIN_WIDTH, THIN)


def hatch(canvas: Canvas, contour: Points, gap: float = 5.0, angle: float = 45.0) -> None:
    """Parallel fine lines inside a contour: the side in shadow."""
    x, y = (sum(axis) / len(contour) for axis in zip(*contour, strict=True))
    reach = max(math.dist(point, (x, y)) for point in contour) + gap
    layer = Image.new("RGB", canvas.image.size)
    lines = Canvas(layer, canvas.x, canvas.y, canvas.scale, canvas.turn, canvas.flip).at(x, y, turn=angle)
    for i in range(-int(reach / gap), int(reach / gap) + 1):
        lines.line([(-reach, i * gap), (reach, i * gap)], 0.9, (255, 255, 255))
    inside = Image.new("L", canvas.image.size)
    ImageDraw.Draw(inside).polygon(canvas.pixels(contour), fill=255)
    drawn = Image.composite(layer.convert("L"), Image.new("L", canvas.image.size), inside)
    canvas.image.paste(THIN, mask=drawn)


def dashed(canvas: Canvas, start: Point, stop: Point) -> None:
    """A centre line: long and short strokes by turns."""
    length = math.dist(start, stop)
    dx, dy = (stop[0] - start[0]) / length, (stop[1] - start[1]) / length
    at, long = 0.0, True
    while at < length:
        end = min(at + (9 if long else 2), length)
        thin(canvas, [(start[0] + dx * at, start[1] + dy * at), (start[0] + dx * end, start[1] + dy * end)])
        at, long = end + 3.5, not long


def dimension(canvas: Canvas, start: Point, stop: Point) -> None:
    """A measure between two points: a fine line with an arrow and a cross stroke at each end."""
    angle = math.atan2(stop[1] - start[1], stop[0] - start[0])
    thin(canvas, [start, stop])
    for (x, y), way in ((start, angle), (stop, angle + math.pi)):
        cross = math.cos(way + math.pi / 2) * 4, math.sin(way + math.pi / 2) * 4
        thin(canvas, [(x - cross[0], y - cross[1]), (x + cross[0], y + cross[1])])
        for side in (-0.4, 0.4):
            thin(canvas, [(x, y), (x + 6 * math.cos(way + side), y + 6 * math.sin(way + side))])


def ring(canvas: Canvas, x: float, y: float, radius: float, width: float = LINE_WIDTH) -> None:
    """A washed circle with the small cross that marks its centre."""
    draft(canvas, ellipse(x, y, radius), width)
    for dx, dy in ((3, 0), (0, 3)):
        thin(canvas, [(x - dx, y - dy), (x + dx, y + dy)])


def ground(canvas: Canvas, y: float, left: float, right: float) -> None:
    """The ground line, with short slanting strokes below it."""
    ink(canvas, [(left, y), (right, y)])
    x = left + 4
    while x < right:
        thin(canvas, [(x, y + 1.5), (x - 5, y + 7)])
        x += 7


def _title_block(corner: Canvas) -> None:
    corner.fill(box(-62, -24, 0, 0), PAPER)
    corner.line(box(-62, -24, 0, 0), LINE_WIDTH, INK, closed=True)
    thin(corner, [(-62, -12), (-22, -12)])
    corner.line([(-22, -24), (-22, 0)], THIN_WIDTH, INK)
    for y, lengths in ((-18, (12, 7, 4)), (-6, (6, 14, 4))):
        x = -57.0
        for length in lengths:
            corner.line([(x, y), (x + length, y)], 2.0, THIN)
            x += length + 4
    corner.line(ellipse(-11, -12, 6.5), THIN_WIDTH, INK)
    corner.fill([(-11, -17), (-8.4, -8.6), (-11, -10.6), (-13.6, -8.6)], INK)  # the north arrow
