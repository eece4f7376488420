"""Draw what stands behind Ember: skies, hills, seas, trees and rooms, in pixels of the picture."""

from __future__ import annotations

import math
import random

from drawing.canvas import OVERSAMPLING, Canvas, Colour, Point, blank, box, curve, ellipse
from PIL import ImageDraw

WHITE = (255, 255, 255)
BARK = (134, 90, 62)
STARLIGHT = (255, 240, 196)


def sky(size: tuple[int, int], top: Colour, bottom: Colour) -> Canvas:
    """A new picture, shaded from the top colour to the bottom colour."""
    canvas, height = blank(*size, top), size[1]
    brush = ImageDraw.Draw(canvas.image)
    for row in range(height):
        shade = tuple(round(a + (b - a) * row / (height - 1)) for a, b in zip(top, bottom, strict=True))
        brush.rectangle((0, row * OVERSAMPLING, canvas.image.width, (row + 1) * OVERSAMPLING - 1), fill=shade)
    return canvas


def land(canvas: Canvas, colour: Colour, *heights: float) -> None:
    """Rolling ground up to these heights, equally far apart from left to right."""
    width, height = _size(canvas)
    ridge = [(width * i / (len(heights) - 1), y) for i, y in enumerate(heights)]
    canvas.fill([(0, height), *curve(ridge, closed=False), (width, height)], colour)


def sea(canvas: Canvas, level: float, colour: Colour, foam: Colour) -> None:
    """Water up to this level, with short waves on it that grow towards the viewer."""
    width, height = _size(canvas)
    canvas.fill(box(0, level, width, height), colour)
    chance, y = random.Random(int(level)), level + 7
    while y < height:
        for x in range(-20, width, 56):
            wave(canvas, (x + chance.uniform(0, 40), y), 10 + (y - level) / 8, foam)
        y += 9 + (y - level) / 7


def wave(canvas: Canvas, at: Point, length: float, colour: Colour) -> None:
    """Two short bows."""
    for side in (0, 1):
        canvas.line(ellipse(at[0] + side * length, at[1], length / 2, length / 5, 10, 170), 1.6, colour)


def sun(canvas: Canvas, x: float, y: float, radius: float, colour: Colour, glow: Colour) -> None:
    """A disc in a paler ring."""
    canvas.fill(ellipse(x, y, radius * 1.4), glow)
    canvas.fill(ellipse(x, y, radius), colour)


def moon(canvas: Canvas, x: float, y: float, radius: float, dark: Colour) -> None:
    """A crescent: a disc and the sky's colour over a part of it."""
    covered = ellipse(x + radius * 0.5, y - radius * 0.2, radius * 0.85)
    canvas.fill(ellipse(x, y, radius), STARLIGHT, [(covered, dark)])


def star(canvas: Canvas, x: float, y: float, radius: float, colour: Colour = STARLIGHT, points: int = 4) -> None:
    """A star of so many points, one of them upwards."""
    spokes = [(math.pi * i / points - math.pi / 2, radius if i % 2 == 0 else radius * 0.4) for i in range(2 * points)]
    canvas.fill([(x + length * math.cos(angle), y + length * math.sin(angle)) for angle, length in spokes], colour)


def cloud(canvas: Canvas, x: float, y: float, width: float, colour: Colour = WHITE) -> None:
    """Three puffs on a flat base."""
    for dx, dy, radius in ((-0.3, -0.12, 0.16), (-0.02, -0.2, 0.24), (0.28, -0.1, 0.15)):
        canvas.fill(ellipse(x + dx * width, y + dy * width, radius * width), colour)
    canvas.line([(x - 0.36 * width, y - 0.06 * width), (x + 0.36 * width, y - 0.06 * width)], 0.16 * width, colour)


def tree(canvas: Canvas, x: float, y: float, height: float, leaf: Colour, light: Colour) -> None:
    """A round tree that stands at (x, y)."""
    crown, radius = y - height * 0.68, height * 0.32
    top, foot = height * 0.04, height * 0.07
    canvas.fill([(x - foot, y), (x - top, crown), (x + top, crown), (x + foot, y)], BARK)
    for dx, dy, r in ((-0.6, 0.35, 0.6), (0.6, 0.35, 0.6), (0, -0.1, 0.95)):
        canvas.fill(ellipse(x + dx * radius, crown + dy * radius, r * radius), leaf)
    canvas.fill(ellipse(x - 0.25 * radius, crown - 0.4 * radius, 0.45 * radius, 0.35 * radius), light)


def pine(canvas: Canvas, x: float, y: float, height: float, leaf: Colour, snow: bool = False) -> None:
    """A fir of three tiers that stands at (x, y)."""
    canvas.fill(box(x - height * 0.05, y - height * 0.2, x + height * 0.05, y), BARK)
    for tier in range(3):
        top, half = y - height * (0.5 + 0.25 * tier), height * (0.32 - 0.07 * tier)
        tip, base = (x, top), top + height * 0.38
        canvas.fill([tip, (x + half, base), (x - half, base)], leaf)
        if snow:
            edge = [(0.45, 0), (0.15, -3), (-0.1, 2), (-0.45, 0)]
            canvas.fill([tip, *((x + half * dx, top + height * 0.17 + dy) for dx, dy in edge)], WHITE)


def flower(canvas: Canvas, x: float, y: float, size: float, petal: Colour, heart: Colour = (255, 214, 80)) -> None:
    """A stalk, five petals and a heart."""
    canvas.line([(x, y), (x, y + size * 2.2)], size * 0.3, (74, 140, 70))
    for i in range(5):
        angle = math.radians(72 * i - 90)
        canvas.fill(ellipse(x + math.cos(angle) * size * 0.6, y + math.sin(angle) * size * 0.6, size * 0.45), petal)
    canvas.fill(ellipse(x, y, size * 0.35), heart)


def grass(canvas: Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    """A tuft of three blades."""
    for lean in (-0.6, 0.0, 0.6):
        canvas.fill([(x - size * 0.15, y), (x + lean * size, y - size), (x + size * 0.15, y)], colour)


def leaf(canvas: Canvas, x: float, y: float, size: float, turn: float, colour: Colour) -> None:
    """A pointed leaf with a stalk."""
    place = canvas.at(x, y, size, turn)
    place.fill(curve([(-1, 0), (-1, 0), (0, -0.5), (1, 0), (1, 0), (0, 0.5)]), colour)
    place.line([(-1.4, 0), (0.3, 0)], 0.14, BARK)


def shadow(canvas: Canvas, x: float, y: float, half: float) -> None:
    """The soft dark patch under something that stands on the ground."""
    canvas.fill(ellipse(x, y, half, half * 0.16), (20, 20, 50, 46))


def _size(canvas: Canvas) -> tuple[int, int]:
    return canvas.image.width // OVERSAMPLING, canvas.image.height // OVERSAMPLING
