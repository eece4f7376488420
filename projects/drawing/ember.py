"""Draw Ember, a small fox of flame: orange fur, cream belly and tail tip, big eyes, a blue scarf."""

from __future__ import annotations

from dataclasses import dataclass

from drawing.canvas import Canvas, Part, Point, Points, capsule, curve, ellipse, mirrored

INK = (84, 38, 30)
FUR = (243, 126, 44)
SHADE = (222, 98, 34)
CREAM = (255, 238, 210)
SOCK = (112, 56, 44)
GLOW = (255, 200, 70)
SCARF = (52, 116, 206)
SCARF_SHADE = (36, 84, 166)
SCARF_STRIPE = (150, 200, 250)
BLUSH = (250, 150, 110)
TONGUE = (226, 84, 84)
WHITE = (255, 255, 255)
SOCK_CORNERS = [(0.65, -1), (0.65, 1), (2, 1), (2, -1)]  # along and across a limb, in its length
OUTLINE = 0.05  # in heads, like every length below: a head is 2 wide and 1.7 high


@dataclass(frozen=True)
class Face:
    """How Ember looks: names from EYES and MOUTHS, and how far the face is turned to the right (-1 to 1)."""

    eyes: str = "open"
    mouth: str = "smile"
    look: float = 0.0
    ears: float = 0.0  # degrees that the ears hang


def sit(canvas: Canvas, face: Face, holding: bool = False) -> None:
    """Sitting, from the front; the ground is at y = 2.3. Held things are drawn at (0, 1.25) by the caller."""
    _tail(canvas.at(0.7, 1.9, turn=38))
    feet = [_foot(x, 2.1) for x in (-0.72, 0.72)]
    body = _body([(0.42, 0.3), (0.66, 0.9), (0.98, 1.6), (0.9, 2.1), (0.4, 2.25)])
    canvas.outlined([body, *feet], OUTLINE, INK)
    canvas.fill(curve(mirrored([(0, 0.5), (0.38, 0.8), (0.52, 1.4), (0.3, 2.0), (0, 2.1)])), CREAM)
    hands = [(-0.3, 1.35), (0.3, 1.35)] if holding else [(-0.26, 2.1), (0.26, 2.1)]
    for side, hand in zip((-1, 1), hands, strict=True):
        canvas.outlined([_limb((side * 0.5, 0.95), hand, 0.2, 0.21)], OUTLINE, INK)
    _scarf(canvas)
    _head(canvas, face)


def stand(canvas: Canvas, face: Face, left: Point = (-1.0, 1.45), right: Point = (1.0, 1.45)) -> None:
    """Standing on two feet, from the front, hands at the two points; the ground is at y = 2.75."""
    _upright(canvas, face, (left, right), ((-0.4, 2.45), (0.4, 2.45)), tail=30)


def jump(canvas: Canvas, face: Face) -> None:
    """In the air, from the front, arms up and legs apart."""
    _upright(canvas, face, ((-1.5, 0.5), (1.5, 0.5)), ((-0.85, 2.1), (0.75, 2.3)), tail=62)


def run(canvas: Canvas, face: Face) -> None:
    """Running to the left on four feet; the ground is at y = 2.2."""
    _tail(canvas.at(2.0, 0.95, turn=72))
    far_legs = [_limb((0.55, 1.2), (0.0, 1.85), 0.26, 0.2), _limb((1.8, 1.1), (2.5, 1.75), 0.3, 0.2)]
    canvas.outlined(far_legs, OUTLINE, INK)
    body = curve([(0.1, 0.4), (1.1, 0.35), (1.95, 0.55), (2.15, 1.1), (1.6, 1.45), (0.6, 1.5), (0.0, 1.1)])
    belly = curve([(0.0, 1.1), (0.9, 1.2), (1.6, 1.3), (1.4, 1.8), (0.2, 1.8)])
    near_legs = [_limb((0.4, 1.15), (-0.6, 1.8), 0.28, 0.2), _limb((1.75, 1.1), (1.35, 2.0), 0.36, 0.2)]
    canvas.outlined([(body, FUR, [(belly, CREAM)]), *near_legs], OUTLINE, INK)
    _scarf(canvas, streaming=True)
    _head(canvas, face)


def curl(canvas: Canvas, face: Face) -> None:
    """Rolled up on the ground, the tail round the body; the ground is at y = 1.0."""
    body = curve([(-0.6, -0.3), (0.5, -0.75), (1.6, -0.5), (2.2, 0.25), (1.9, 0.9), (0.4, 1.0), (-0.7, 0.9)])
    back = curve([(0.4, -0.9), (1.6, -0.7), (2.5, 0.2), (2.2, 1.2), (1.9, 0.6), (1.5, -0.1)])
    canvas.outlined([(body, FUR, [(back, SHADE)])], OUTLINE, INK)
    _scarf(canvas.at(0, -0.45, turn=8))
    _head(canvas.at(0, -0.05, turn=8), face)
    _tail(canvas.at(2.3, 0.95, scale=0.72, turn=-94))


def peek(canvas: Canvas, face: Face) -> None:
    """Head and shoulders; below y = 1.6 something must hide the rest."""
    canvas.outlined([_body([(0.5, 0.3), (0.85, 0.9), (1.0, 1.6), (1.0, 2.2), (0.5, 2.6)])], OUTLINE, INK)
    canvas.fill(curve(mirrored([(0, 0.5), (0.42, 0.9), (0.55, 1.6), (0, 2.4)])), CREAM)
    _scarf(canvas)
    _head(canvas, face)


def paw(canvas: Canvas, x: float, y: float) -> None:
    """A paw by itself, in front of what it holds."""
    canvas.outlined([(ellipse(x, y, 0.19, 0.2), SOCK, [])], OUTLINE, INK)


def _upright(canvas: Canvas, face: Face, hands: Points, feet: Points, tail: float) -> None:
    _tail(canvas.at(0.45, 1.75, turn=tail))
    body = _body([(0.4, 0.3), (0.58, 0.9), (0.74, 1.5), (0.62, 2.0), (0.3, 2.15)])
    legs = [_limb((0.34 * side, 1.85), foot, 0.3, 0.25) for side, foot in zip((-1, 1), feet, strict=True)]
    arms = [_limb((0.45 * side, 0.92), hand, 0.2, 0.19) for side, hand in zip((-1, 1), hands, strict=True)]
    canvas.outlined([*legs, *arms, body], OUTLINE, INK)
    canvas.fill(curve(mirrored([(0, 0.5), (0.34, 0.8), (0.44, 1.4), (0.3, 1.9), (0, 2.0)])), CREAM)
    _scarf(canvas)
    _head(canvas, face)


def _body(side: Points) -> Part:
    bottom = side[-1][1]
    shade = curve([(0.45, 0.2), (0.62, 1.2), (0.7, bottom - 0.3), (0.3, bottom + 0.4), (1.4, bottom + 0.4), (1.3, 0.2)])
    return curve(mirrored([(0, 0.2), *side])), FUR, [(shade, SHADE)]


def _foot(x: float, y: float) -> Part:
    return ellipse(x, y, 0.4, 0.24), SOCK, []


def _limb(start: Point, stop: Point, start_radius: float, stop_radius: float) -> Part:
    """An arm or leg whose last third is a dark sock."""
    (x, y), (dx, dy) = start, (stop[0] - start[0], stop[1] - start[1])
    sock = [(x + along * dx - across * dy, y + along * dy + across * dx) for along, across in SOCK_CORNERS]
    return capsule(start, stop, start_radius, stop_radius), FUR, [(sock, SOCK)]


def _tail(canvas: Canvas) -> None:
    """A flame that grows upwards from the origin."""
    flame = [
        *((-0.25, 0.1), (-0.72, -0.6), (-0.88, -1.2), (-0.7, -1.7), (-0.86, -2.25), (-0.86, -2.25), (-0.3, -2.05)),
        *((0.05, -2.85), (0.05, -2.85), (0.3, -2.15), (0.78, -2.3), (0.78, -2.3), (0.66, -1.6), (0.6, -0.8)),
        (0.28, 0.1),
    ]
    canvas.outlined([(curve(flame), FUR, [(_flicker(-1.15), GLOW), (_flicker(-1.5), CREAM)])], OUTLINE, INK)


def _flicker(y: float) -> Points:
    """Everything above a ragged edge: the hotter part of the tail."""
    edge = [(-1.0, 0.0), (-0.62, 0.3), (-0.42, -0.12), (-0.1, 0.35), (0.15, -0.1), (0.42, 0.26), (1.0, -0.1)]
    return [(-1.2, -3.5), *curve([(x, y + dy) for x, dy in edge], closed=False), (1.2, -3.5)]


def _scarf(canvas: Canvas, streaming: bool = False) -> None:
    """Round the neck below a head at the origin; the loose end hangs, or streams to the right."""
    end = canvas.at(0.45, 0.95, turn=-78) if streaming else canvas.at(-0.42, 0.95, turn=10)
    cloth = curve(
        [(-0.2, -0.1), (-0.2, -0.1), (-0.26, 0.5), (-0.3, 0.95), (-0.3, 0.95), (0.2, 0.98), (0.2, 0.98), (0.2, 0)]
    )
    stripe = [(-0.5, 0.66), (0.5, 0.68), (0.5, 0.8), (-0.5, 0.78)]
    end.outlined([(cloth, SCARF, [(stripe, SCARF_STRIPE)])], OUTLINE, INK)
    band = [(-0.78, 0.5), (0.0, 0.66), (0.78, 0.5), (0.9, 0.8), (0.5, 1.06), (0, 1.13), (-0.5, 1.06), (-0.9, 0.8)]
    fold = curve([(-0.9, 0.98), (0, 1.0), (0.95, 0.75), (1.0, 1.3), (-0.9, 1.3)])
    canvas.outlined([(curve(band), SCARF, [(fold, SCARF_SHADE)])], OUTLINE, INK)


def _head(canvas: Canvas, face: Face) -> None:
    for side in (False, True):
        _ear(canvas.at(0.55 if not side else -0.55, -0.5, turn=face.ears if not side else -face.ears, flip=side))
    half = [(0, -0.86), (0.5, -0.8), (0.88, -0.42), (1.0, 0.08), (1.3, 0.36), (1.3, 0.36), (0.98, 0.46)]
    half += [(1.08, 0.7), (1.08, 0.7), (0.62, 0.76), (0, 0.84)]
    x = 0.14 * face.look
    mask = [(-1.6, 0.1), (-0.75 + x, 0.12), (-0.3 + x, 0.34), (x, 0.2), (0.3 + x, 0.34), (0.75 + x, 0.12), (1.6, 0.1)]
    lower = [*curve(mask, closed=False), (1.6, 1.4), (-1.6, 1.4)]
    canvas.outlined([(curve(mirrored(half)), FUR, [(lower, CREAM)])], OUTLINE, INK)
    _forelock(canvas.at(0.5 * x, 0))
    features = canvas.at(x, 0)
    for side in (-1, 1):
        features.fill(ellipse(side * 0.74, 0.4, 0.17, 0.1), BLUSH)
        EYES[face.eyes](features.at(side * 0.45, 0.02, flip=side < 0))
    features.fill(curve([(-0.11, 0.29), (0.11, 0.29), (0.06, 0.38), (0, 0.42), (-0.06, 0.38)]), INK)
    MOUTHS[face.mouth](features.at(0, 0.42))


def _ear(canvas: Canvas) -> None:
    outer = curve([(-0.34, -0.2), (-0.1, -0.75), (0.42, -1.15), (0.42, -1.15), (0.5, -0.5), (0.42, 0.25), (0, 0.3)])
    inner = curve([(-0.08, -0.2), (0.06, -0.55), (0.34, -0.85), (0.34, -0.85), (0.36, -0.4), (0.3, 0.2)])
    tip = [(-0.5, -1.5), (1, -1.5), (1, -0.8), (0.2, -0.84), (-0.3, -0.66)]
    canvas.outlined([(outer, FUR, [(inner, CREAM), (tip, SOCK)])], OUTLINE, INK)


def _forelock(canvas: Canvas) -> None:
    """The little flame on the forehead."""
    flame = [
        *((-0.4, -0.72), (-0.44, -1.0), (-0.34, -1.3), (-0.34, -1.3), (-0.14, -1.1), (0.06, -1.62), (0.06, -1.62)),
        *((0.2, -1.12), (0.42, -1.24), (0.42, -1.24), (0.42, -0.9), (0.36, -0.7), (0.14, -0.42), (0, -0.62)),
        (-0.2, -0.46),
    ]
    heart = [(-0.16, -0.66), (-0.1, -0.95), (0.05, -1.25), (0.05, -1.25), (0.16, -0.9), (0.16, -0.66), (0, -0.72)]
    canvas.outlined([(curve(flame), GLOW, [(curve(heart), CREAM)])], OUTLINE, INK)


def _open_eye(canvas: Canvas) -> None:
    canvas.fill(ellipse(0, 0, 0.2, 0.27), INK)
    canvas.fill(ellipse(0, 0.12, 0.12, 0.1), (150, 78, 44))
    # The light comes from one side, whichever eye it is.
    side = 0.07 if canvas.flip else -0.07
    canvas.fill(ellipse(side, -0.1, 0.075, 0.085), WHITE)
    canvas.fill(ellipse(-side, 0.1, 0.04), WHITE)


def _wide_eye(canvas: Canvas) -> None:
    canvas.fill(ellipse(0, 0, 0.27, 0.32), INK)
    canvas.fill(ellipse(0, 0, 0.225, 0.275), WHITE)
    canvas.fill(ellipse(0, 0.02, 0.12, 0.15), INK)
    canvas.fill(ellipse(0.04 if canvas.flip else -0.04, -0.04, 0.045), WHITE)


def _happy_eye(canvas: Canvas) -> None:
    canvas.line(ellipse(0, 0.1, 0.22, 0.24, 195, 345), 0.08, INK)


def _closed_eye(canvas: Canvas) -> None:
    canvas.line(ellipse(0, -0.06, 0.22, 0.18, 15, 165), 0.08, INK)


def _sleepy_eye(canvas: Canvas) -> None:
    _open_eye(canvas)
    lid = [(-0.2, -0.07), (0, -0.02), (0.22, 0.04)]
    canvas.fill([(0.3, 0.0), (0.3, -0.35), (-0.3, -0.35), (-0.3, -0.08), *lid], FUR)
    canvas.line(curve(lid, closed=False), 0.07, INK)


def _sad_eye(canvas: Canvas) -> None:
    _open_eye(canvas)
    canvas.line([(-0.24, -0.44), (0.0, -0.4), (0.18, -0.3)], 0.07, INK)


def _wink(canvas: Canvas) -> None:
    (_happy_eye if canvas.flip else _open_eye)(canvas)


def _smile(canvas: Canvas) -> None:
    for x in (-0.12, 0.12):
        canvas.line(ellipse(x, 0.04, 0.12, 0.12, 0, 180), 0.05, INK)


def _laugh(canvas: Canvas) -> None:
    mouth = [(-0.3, 0.06), (-0.3, 0.06), (0, 0.1), (0.3, 0.06), (0.3, 0.06), (0.18, 0.28), (0, 0.34), (-0.18, 0.28)]
    canvas.outlined([(curve(mouth), SOCK, [(ellipse(0, 0.32, 0.18, 0.12), TONGUE)])], 0.03, INK)


def _gasp(canvas: Canvas) -> None:
    canvas.outlined([(ellipse(0, 0.18, 0.1, 0.12), SOCK, [])], 0.03, INK)


def _frown(canvas: Canvas) -> None:
    canvas.line(ellipse(0, 0.24, 0.15, 0.1, 200, 340), 0.05, INK)


EYES = {
    "open": _open_eye,
    "wide": _wide_eye,
    "happy": _happy_eye,
    "closed": _closed_eye,
    "sleepy": _sleepy_eye,
    "sad": _sad_eye,
    "wink": _wink,
}
MOUTHS = {"smile": _smile, "laugh": _laugh, "gasp": _gasp, "frown": _frown}
