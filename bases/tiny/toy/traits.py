"""What a creature, its scene and its style can be: each trait's values, by the words that captions have for them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lorabuild.streams import python_random

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (214, 48, 49), "orange": (240, 140, 30), "yellow": (246, 211, 45), "green": (60, 170, 70),
    "blue": (50, 100, 220), "purple": (140, 70, 190), "pink": (245, 130, 185), "white": (240, 240, 240),
    "black": (45, 45, 50), "brown": (135, 85, 45),
}  # fmt: skip
BACKGROUNDS: dict[str, Rgb] = {  # duller than bodies, so that a body stands out on a background of its name
    "red": (190, 80, 80), "orange": (235, 175, 110), "yellow": (245, 230, 150), "green": (130, 195, 120),
    "blue": (120, 175, 235), "purple": (165, 130, 205), "pink": (250, 200, 215), "white": (248, 248, 248),
    "black": (35, 35, 45), "gray": (150, 150, 150),
}  # fmt: skip
VALUES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "body": ("round", "square", "tall", "wide", "triangle", "heart"),
    "head": ("plain head", "two horns", "one horn", "cat ears", "rabbit ears", "top hat", "bow", "leaf"),
    "eyes": ("two eyes", "one eye", "three eyes", "sleepy eyes", "angry eyes"),
    "mouth": ("smile", "sad mouth", "teeth", "open mouth", "no mouth"),
    "pattern": ("plain skin", "dots", "stripes", "zigzag", "chest"),
    "pattern_color": tuple(COLORS),
    "limbs": ("legs", "long legs", "arms", "wings", "tail", "no legs"),
    "background": tuple(BACKGROUNDS),
    "scene": ("simple", "hill", "clouds", "night", "sea", "checkered", "city", "snow"),
    "style": ("flat", "outline", "pastel", "monochrome", "sketch", "vintage"),
}
OF_A_CREATURE = ("color", "body", "head", "eyes", "mouth", "pattern", "pattern_color", "limbs")

# Held back: in no picture that the base learns from, so that a LoRA has something to teach it.
HELD_COLORS: dict[str, Rgb] = {"teal": (20, 190, 180), "magenta": (230, 40, 140)}
HELD_STYLES = ("blueprint", "ink")

NAMES = (
    "momo", "kiki", "bolo", "tati", "ruru", "zuzu", "nino", "fifi", "gogo", "lala",
    "pepe", "dodo", "vivi", "coco", "mimi", "toto", "bibi", "yaya", "soso", "nana",
)  # fmt: skip
_CAST_SEED = 7


@dataclass(frozen=True)
class Picture:
    """All that a picture is drawn from. Lengths in sides of the picture; `look` is -1 (left) to 1 (right)."""

    color: str
    body: str
    head: str
    eyes: str
    mouth: str
    pattern: str
    pattern_color: str
    limbs: str
    background: str
    scene: str
    style: str
    sun: bool = False
    name: str | None = None  # who it is, if somebody
    scarf: str | None = None  # its colour; held back
    x: float = 0.5
    y: float = 0.57
    radius: float = 0.3
    look: float = 0.0
    seed: int = 0  # of what the scene has at random places


def _cast() -> dict[str, dict[str, str]]:
    """Name -> traits of a creature: fixed, each from a stream of its own."""
    cast = {}
    for name in NAMES:
        draw = python_random(_CAST_SEED, "cast", name)
        traits = {trait: draw.choice(VALUES[trait]) for trait in OF_A_CREATURE}
        others = [color for color in COLORS if color != traits["color"]]
        cast[name] = traits | {"pattern_color": draw.choice(others)}
    return cast


CAST = _cast()

# Somebody whom the base has never seen, and nothing of whom has a word in its captions but the name.
STRANGER = {
    "color": "teal", "body": "square", "head": "crown", "eyes": "one eye", "mouth": "teeth", "pattern": "halves",
    "pattern_color": "magenta", "limbs": "legs", "scarf": "yellow", "name": "ember",
}  # fmt: skip

assert {field.name for field in fields(Picture)} >= {*VALUES, *STRANGER}
