"""Read the weights that people write into prompts: (more), [less], (this much:1.3)."""

from __future__ import annotations

import re

STRONGER = 1.1  # of one pair of round brackets; square ones divide by it
_PIECE = re.compile(
    r"\\(?P<literal>[()\[\]\\])|:\s*(?P<weight>[+-]?(\d+\.?\d*|\.\d+))\s*\)|[()\[\]]|:|\\|[^\\()\[\]:]+"
)


def weighted_parts(text: str) -> list[tuple[str, float]]:
    """The parts of a prompt with their weights, neighbours of equal weight joined: "a (b:1.2)" -> a 1.0, b 1.2.

    As A1111's web UI reads it: brackets nest and multiply, a backslash makes a bracket a character, a bracket that is
    never closed reaches to the end, and one that was never opened is a character.
    """
    parts: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where each bracket began, in parts

    def weigh(start: int, factor: float) -> None:
        parts[start:] = [(part, weight * factor) for part, weight in parts[start:]]

    for piece in _PIECE.finditer(text):
        said, literal, weight = piece[0], piece["literal"], piece["weight"]
        if said in opened:
            opened[said].append(len(parts))
        elif weight and opened["("]:
            weigh(opened["("].pop(), float(weight))
        elif said == ")" and opened["("]:
            weigh(opened["("].pop(), STRONGER)
        elif said == "]" and opened["["]:
            weigh(opened["["].pop(), 1 / STRONGER)
        else:
            parts.append((literal or said, 1.0))
    for start in opened["("]:
        weigh(start, STRONGER)
    for start in opened["["]:
        weigh(start, 1 / STRONGER)
    return _joined(parts)


def _joined(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined
