"""Which pictures there are: each is a pure function of a seed, what it is for, and its number."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from lorabuild.streams import python_random
from toy.traits import BACKGROUNDS, CAST, COLORS, OF_A_CREATURE, STRANGER, VALUES, Picture

NAMED_SHARE = 0.15
SUN_SHARE = 0.2


def picture(seed: int, purpose: str, index: int, fixed: Mapping[str, Any] | None = None) -> Picture:
    """Picture `index` of those for `purpose` ("train", "validate", …); `fixed` traits are as given.

    No body has the colour of its background or its pattern.
    """
    draw = python_random(seed, "picture", purpose, index)
    traits: dict[str, Any] = {trait: draw.choice(VALUES[trait]) for trait in OF_A_CREATURE}
    if draw.random() < NAMED_SHARE and not fixed:
        name = draw.choice(tuple(CAST))
        traits |= CAST[name] | {"name": name}
    traits |= {trait: draw.choice(VALUES[trait]) for trait in ("background", "scene")}
    # Half are flat: the other styles hide what colours are, and flat ones are what one wants to see.
    traits["style"] = "flat" if draw.random() < 0.4 else draw.choice(VALUES["style"])
    traits["sun"] = draw.random() < SUN_SHARE
    traits |= dict(fixed or {})
    given = set(fixed or {}) | (set(OF_A_CREATURE) if traits.get("name") else set())
    for trait, choices in (("pattern_color", COLORS), ("background", BACKGROUNDS)):
        if traits[trait] == traits["color"] and trait not in given:
            traits[trait] = draw.choice([color for color in choices if color != traits["color"]])
    return Picture(**traits, **_placed(draw))


def _placed(draw: Random) -> dict[str, Any]:
    return {
        "x": 0.5 + draw.uniform(-0.09, 0.09),
        "y": 0.57 + draw.uniform(-0.05, 0.05),
        "radius": draw.uniform(0.26, 0.33),
        "look": draw.uniform(-1, 1),
        "seed": draw.getrandbits(32),
    }


def stranger(seed: int, index: int) -> Picture:
    """The character that is held back, in a new scene."""
    return picture(seed, "stranger", index, {**STRANGER, "style": "flat", "sun": False})


def strange_style(style: str, seed: int, index: int) -> Picture:
    """Any unnamed creature in a style that is held back."""
    return picture(seed, f"style {style}", index, {"style": style})


def plain(seed: int, purpose: str, index: int) -> Picture:
    """A picture of which colours can be told: plain skin, nothing behind."""
    fixed = {"pattern": "plain skin", "scene": "simple", "style": "flat", "sun": False, "name": None}
    return picture(seed, purpose, index, fixed)
