"""Colours of a terminal, where it has them and may show them."""

from __future__ import annotations

import os
import sys

COLOURS = {"green": "32", "yellow": "33", "red": "31", "dim": "2"}


def coloured() -> bool:
    """Is this a terminal that shows colours, and may it?"""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str) -> str:
    return f"\033[{COLOURS[colour]}m{text}\033[0m"
