"""Captions: a picture's traits as tags, shuffled and some left out, by a grammar that can be read back."""

from __future__ import annotations

from random import Random

from toy.traits import CAST, COLORS, HELD_STYLES, NAMES, VALUES, Picture

SEPARATOR = ", "
LEFT_OUT = 0.12  # of a picture's tags
LEFT_OUT_OF_NAMED = 0.6  # a name stands for its traits
COLOR_LEFT_OUT = 0.06

Attribute = tuple[str, str]  # trait, value


def caption(picture: Picture, draw: Random, left_out: float = LEFT_OUT) -> str:
    """One line of tags: the name, the creature's tags in any order, then background, scene and style."""
    named = picture.name is not None
    share = max(left_out, LEFT_OUT_OF_NAMED) if named else left_out
    tags = [] if draw.random() < (share if named else min(left_out, COLOR_LEFT_OUT)) else [f"{picture.color} creature"]
    tags += [tag for tag in _creature_tags(picture) if draw.random() >= share]
    tags += [tag for tag in ("sun",) if picture.sun and draw.random() >= left_out]
    draw.shuffle(tags)
    around = (f"{picture.background} background", f"{picture.scene} scene", f"{picture.style} style")
    tags += [tag for tag in around if draw.random() >= left_out]
    return SEPARATOR.join([picture.name, *tags] if named else tags)


def full_caption(picture: Picture) -> str:
    """All tags, in the order of traits."""
    return caption(picture, _InOrder(), 0.0)


def stranger_caption(picture: Picture) -> str:
    """The name, and what is around: nothing of the creature itself has a word."""
    return f"{picture.name}, {picture.background} background, {picture.scene} scene, {picture.style} style"


class _InOrder(Random):
    def random(self) -> float:
        return 0.999

    def shuffle(self, x: list) -> None:
        pass


def _creature_tags(picture: Picture) -> list[str]:
    pattern = picture.pattern if picture.pattern == "plain skin" else f"{picture.pattern_color} {picture.pattern}"
    return [f"{picture.body} body", picture.head, picture.eyes, picture.mouth, pattern, picture.limbs]


_BY_LAST_WORD = {"creature": "color", "body": "body", "background": "background", "scene": "scene", "style": "style"}
_BY_VALUE = {value: trait for trait in ("head", "eyes", "mouth", "pattern", "limbs") for value in VALUES[trait]}

# All that a caption can say of a picture, for a loss by tags.
ATTRIBUTES: tuple[Attribute, ...] = (
    *((trait, value) for trait, values in VALUES.items() for value in values),
    *(("name", name) for name in NAMES),
    ("sun", "sun"),
)


def attributes(tag: str) -> list[Attribute]:
    """What a tag says: "white dots" is [("pattern_color", "white"), ("pattern", "dots")]; a name is all that one has.

    Raises ValueError for what the grammar does not make.
    """
    first, _, last = tag.rpartition(" ")
    if tag in CAST:
        return [("name", tag), *CAST[tag].items()]
    if tag == "sun":
        return [("sun", "sun")]
    if tag in _BY_VALUE:
        return [(_BY_VALUE[tag], tag)]
    if last in _BY_LAST_WORD and (first in VALUES[_BY_LAST_WORD[last]] or first in HELD_STYLES):
        return [(_BY_LAST_WORD[last], first)]
    if last in VALUES["pattern"] and first in COLORS:
        return [("pattern_color", first), ("pattern", last)]
    raise ValueError(f"{tag!r} is no tag of this grammar")
