"""Eyes and mouth."""

from __future__ import annotations

from toy.draw.canvas import Canvas
from toy.traits import COLORS, HELD_COLORS, Picture, Rgb

WHITE: Rgb = (255, 255, 255)
DARK: Rgb = (22, 20, 26)
LINE_WIDTH = 0.11  # in radii


def draw_face(canvas: Canvas, picture: Picture) -> None:
    """In the middle of the body; wide enough that an eye is larger than one field of 8 x 8 pixels at 128."""
    _draw_eyes(canvas, picture)
    _draw_mouth(canvas, picture)


def _draw_eyes(canvas: Canvas, picture: Picture) -> None:
    radius, y = picture.radius, picture.y - 0.25 * picture.radius
    size = radius * (0.38 if picture.eyes == "one eye" else 0.2 if picture.eyes == "three eyes" else 0.25)
    lid = tuple(int(0.7 * value) for value in (COLORS | HELD_COLORS)[picture.color])
    places = {"one eye": (0.0,), "three eyes": (-0.48, 0.0, 0.48)}.get(picture.eyes, (-0.35, 0.35))
    for place in places:
        x = picture.x + place * radius
        canvas.ellipse(x, y, size, 1.1 * size, WHITE)
        canvas.ellipse(x + 0.35 * size * picture.look, y + 0.1 * size, 0.55 * size, 0.6 * size, DARK, outlined=False)
        if picture.eyes == "sleepy eyes":
            canvas.pie(x, y - 0.05 * size, 1.1 * size, 1.2 * size, 180, 360, lid)
        if picture.eyes == "angry eyes":
            inner, outer = (x - 1.1 * size, x + 1.1 * size) if place > 0 else (x + 1.1 * size, x - 1.1 * size)
            canvas.line([(inner, y - 0.4 * size), (outer, y - 1.5 * size)], DARK, 0.15 * radius)


def _draw_mouth(canvas: Canvas, picture: Picture) -> None:
    radius = picture.radius
    x, y, width = picture.x, picture.y + 0.35 * radius, 0.42 * radius
    if picture.mouth == "smile":
        canvas.arc(x, y - 0.1 * width, width, 0.75 * width, 15, 165, DARK, LINE_WIDTH * radius)
    elif picture.mouth == "sad mouth":
        canvas.arc(x, y + 0.5 * width, width, 0.75 * width, 195, 345, DARK, LINE_WIDTH * radius)
    elif picture.mouth == "open mouth":
        canvas.ellipse(x, y + 0.1 * width, 0.65 * width, 0.7 * width, (120, 20, 40))
    elif picture.mouth == "teeth":
        canvas.box(x - width, y - 0.16 * radius, x + width, y + 0.2 * radius, (40, 15, 25))
        for number in range(3):
            left = x - width + 2 * width * number / 3
            points = [
                (left, y - 0.16 * radius),
                (left + 2 * width / 3, y - 0.16 * radius),
                (left + width / 3, y + 0.17 * radius),
            ]
            canvas.polygon(points, WHITE)
