"""A creature: limbs, what is behind the body, the body with its pattern, what is on the head, the face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

from toy.draw.canvas import INK, Canvas, Point, shaded
from toy.draw.face import draw_face
from toy.traits import COLORS, HELD_COLORS, Picture, Rgb

PALETTE = COLORS | HELD_COLORS
HORN: Rgb = (245, 235, 200)
HAT: Rgb = (35, 30, 40)
GOLD: Rgb = (250, 200, 40)
LEAF: Rgb = (80, 180, 60)

# Half the width and half the height of a body of radius 1, and where the sides are that limbs grow from.
EXTENT = {
    "round": (1.0, 1.0), "square": (0.92, 0.92), "tall": (0.75, 1.2), "wide": (1.25, 0.82),
    "triangle": (0.62, 1.05), "heart": (0.95, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """Where a creature stands on the canvas: (x, y) in radii from its centre become places of the canvas."""

    canvas: Canvas
    picture: Picture

    def at(self, *points: Point) -> list[Point]:
        one = self.picture
        return [(one.x + one.radius * x, one.y + one.radius * y) for x, y in points]

    def polygon(self, fill: Rgb, *points: Point) -> None:
        self.canvas.polygon(self.at(*points), fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Rgb, outlined: bool = True) -> None:
        radius = self.picture.radius
        self.canvas.ellipse(*self.at((x, y))[0], radius * rx, radius * ry, fill, outlined)

    def line(self, fill: Rgb, width: float, *points: Point) -> None:
        self.canvas.line(self.at(*points), fill, width * self.picture.radius)

    @property
    def color(self) -> Rgb:
        return PALETTE[self.picture.color]

    @property
    def second(self) -> Rgb:
        return PALETTE[self.picture.pattern_color]

    @property
    def top(self) -> float:
        return -EXTENT[self.picture.body][1]


def draw_creature(canvas: Canvas, picture: Picture) -> None:
    place = _Place(canvas, picture)
    LIMBS[picture.limbs](place)
    BEHIND.get(picture.head, _nothing)(place)
    _draw_body(place)
    ON_TOP.get(picture.head, _nothing)(place)
    draw_face(canvas, picture)
    if picture.scarf:
        _scarf(place, PALETTE[picture.scarf])


def _nothing(place: _Place) -> None:
    pass


# body and pattern


def outline(body: str) -> list[Point]:
    """A body of radius 1 as 72 points."""
    return [_shaped(body, cos(2 * pi * step / 72), sin(2 * pi * step / 72)) for step in range(72)]


def _shaped(body: str, x: float, y: float) -> Point:
    if body == "square":
        norm = (abs(x) ** 5 + abs(y) ** 5) ** 0.2  # a superellipse
        return 0.92 * x / norm, 0.92 * y / norm
    if body == "triangle":
        return x * (0.65 + 0.5 * y), 1.05 * y
    if body == "heart":
        dent = 0.45 * max(0.0, 1 - abs(x) * 2.2) if y < 0 else 0.0
        return x * (1.05 - 0.35 * max(0.0, y)), y + dent
    width, height = EXTENT[body]
    return width * x, height * y


def _draw_body(place: _Place) -> None:
    points = place.at(*outline(place.picture.body))
    skin = place.canvas.blank(place.color)
    _draw_pattern(_Place(skin, place.picture))
    place.canvas.paste_within(skin, points)
    if place.canvas.outline:
        place.canvas.line([*points, points[0], points[1]], INK, place.canvas.outline)


def _draw_pattern(place: _Place) -> None:
    pattern, second = place.picture.pattern, place.second
    if pattern == "dots":
        for x, y in ((-0.65, -0.5), (0.6, -0.65), (-0.75, 0.35), (0.75, 0.25), (0.05, 0.8), (0, -0.85)):
            place.ellipse(x, y, 0.2, 0.2, second)
    elif pattern == "stripes":
        for row in range(-2, 3):
            place.line(second, 0.24, (-2, 0.55 * row), (2, 0.55 * row))
    elif pattern == "zigzag":
        place.line(second, 0.24, *((0.35 * (step - 5), 0.6 + 0.22 * (-1) ** step) for step in range(11)))
    elif pattern == "chest":
        place.ellipse(0, 0.65, 0.62, 0.62, second)
    elif pattern == "halves":
        place.polygon(second, (0, -2), (2, -2), (2, 2), (0, 2))


# limbs, drawn before the body


def _legs(place: _Place, length: float = 0.3) -> None:
    bottom, dark = -place.top, shaded(place.color, 0.7)
    for side in (-1, 1):
        x = 0.42 * side
        place.polygon(
            dark,
            (x - 0.15, bottom - 0.3),
            (x + 0.15, bottom - 0.3),
            (x + 0.15, bottom + length),
            (x - 0.15, bottom + length),
        )
        place.ellipse(x + 0.1 * side, bottom + length, 0.28, 0.14, dark)


def _long_legs(place: _Place) -> None:
    _legs(place, 0.6)


def _arms(place: _Place) -> None:
    reach, dark = EXTENT[place.picture.body][0], shaded(place.color, 0.7)
    for side in (-1, 1):
        place.line(dark, 0.24, (side * reach * 0.7, 0.2), (side * (reach + 0.3), -0.05), (side * (reach + 0.4), -0.45))
        place.ellipse(side * (reach + 0.4), -0.5, 0.2, 0.2, dark)


def _wings(place: _Place) -> None:
    reach = 0.8 * EXTENT[place.picture.body][0]
    for side in (-1, 1):
        place.polygon(
            place.second,
            (side * reach, 0),
            (side * (reach + 0.85), -0.8),
            (side * (reach + 0.7), 0.15),
            (side * reach, 0.45),
        )


def _tail(place: _Place) -> None:
    reach, dark = EXTENT[place.picture.body][0], shaded(place.color, 0.7)
    place.line(dark, 0.26, (0.6 * reach, 0.6), (reach + 0.35, 0.65), (reach + 0.55, 0.2))
    place.ellipse(reach + 0.55, 0.15, 0.22, 0.22, place.second)


LIMBS: dict[str, Callable[[_Place], None]] = {
    "legs": _legs, "long legs": _long_legs, "arms": _arms, "wings": _wings, "tail": _tail, "no legs": _nothing,
}  # fmt: skip


# heads: behind the body, or on top of it


def _two_horns(place: _Place) -> None:
    for side in (-1, 1):
        at = place.top
        place.polygon(HORN, (0.15 * side, at + 0.3), (0.65 * side, at - 0.5), (0.7 * side, at + 0.5))


def _one_horn(place: _Place) -> None:
    place.polygon(HORN, (-0.25, place.top + 0.3), (0, place.top - 0.6), (0.25, place.top + 0.3))


def _cat_ears(place: _Place) -> None:
    for side in (-1, 1):
        at = place.top
        place.polygon(place.color, (0.05 * side, at + 0.3), (0.65 * side, at - 0.4), (0.8 * side, at + 0.6))


def _rabbit_ears(place: _Place) -> None:
    for side in (-1, 1):
        place.ellipse(0.38 * side, place.top - 0.2, 0.2, 0.6, place.color)
        place.ellipse(0.38 * side, place.top - 0.2, 0.1, 0.4, (250, 190, 200), outlined=False)


def _top_hat(place: _Place) -> None:
    at = place.top + 0.2
    place.polygon(HAT, (-0.7, at), (-0.7, at - 0.16), (-0.4, at - 0.16), (-0.4, at - 0.8), (0.4, at - 0.8), (0.4, at - 0.16), (0.7, at - 0.16), (0.7, at))  # fmt: skip
    place.polygon(place.second, (-0.4, at - 0.36), (0.4, at - 0.36), (0.4, at - 0.16), (-0.4, at - 0.16))


def _bow(place: _Place) -> None:
    at = place.top + 0.12
    for side in (-1, 1):
        place.polygon(place.second, (0, at), (0.6 * side, at - 0.35), (0.6 * side, at + 0.3))
    place.ellipse(0, at, 0.15, 0.15, shaded(place.second, 0.8))


def _leaf(place: _Place) -> None:
    at = place.top
    place.line((90, 70, 40), 0.1, (0, at + 0.2), (0, at - 0.25))
    for side in (-1, 1):
        place.polygon(LEAF, (0, at - 0.2), (0.3 * side, at - 0.6), (0.7 * side, at - 0.45), (0.4 * side, at - 0.15))


def _crown(place: _Place) -> None:
    at = place.top
    place.polygon(GOLD, (-0.55, at + 0.25), (-0.65, at - 0.5), (-0.28, at - 0.1), (0, at - 0.6), (0.28, at - 0.1), (0.65, at - 0.5), (0.55, at + 0.25))  # fmt: skip


BEHIND = {"two horns": _two_horns, "one horn": _one_horn, "cat ears": _cat_ears, "rabbit ears": _rabbit_ears}
ON_TOP = {"top hat": _top_hat, "bow": _bow, "leaf": _leaf, "crown": _crown}


def _scarf(place: _Place, color: Rgb) -> None:
    place.polygon(color, (-1.0, 0.62), (1.0, 0.62), (1.0, 0.92), (-1.0, 0.92))
    place.polygon(shaded(color, 0.85), (0.35, 0.8), (0.75, 0.8), (0.82, 1.5), (0.42, 1.45))
