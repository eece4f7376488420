"""Read `(x:1.2)`, `(x)` and `[x]` in a prompt as UIs do: text, and how much attention it gets."""

from __future__ import annotations

import re

MORE = 1.1  # of a pair of round brackets; square ones divide by it (AUTOMATIC1111's web UI, which others follow)

_TOKEN = re.compile(r"\\[()\[\]\\]|:\s*([+-]?\d*\.?\d+)\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    r"""The text of a prompt in order, each part with its weight. `\(` is a bracket of the text; one without its other too.

    "a (red:1.2) fox" -> [("a ", 1.0), ("red", 1.2), (" fox", 1.0)].
    """
    parts: list[tuple[str, float]] = []
    rounds: list[int] = []  # where each open bracket's text begins
    squares: list[int] = []
    for match in _TOKEN.finditer(prompt):
        token, weight = match[0], match[1]
        if token == "(":
            rounds.append(len(parts))
        elif token == "[":
            squares.append(len(parts))
        elif weight is not None and rounds:
            _scale(parts, rounds.pop(), float(weight))
        elif token == ")" and rounds:
            _scale(parts, rounds.pop(), MORE)
        elif token == "]" and squares:
            _scale(parts, squares.pop(), 1 / MORE)
        else:
            parts.append((token[1:] if len(token) == 2 and token[0] == "\\" else token, 1.0))
    for start in rounds:
        _scale(parts, start, MORE)  # a bracket that is never closed counts to the end, as it does there
    for start in squares:
        _scale(parts, start, 1 / MORE)
    return _joined(parts)


def _scale(parts: list[tuple[str, float]], start: int, factor: float) -> None:
    parts[start:] = [(text, weight * factor) for text, weight in parts[start:]]


def _joined(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for text, weight in parts:
        if found and found[-1][1] == weight:
            found[-1] = (found[-1][0] + text, weight)
        else:
            found.append((text, weight))
    return found
