"""Colours of a terminal, where it has them and may show them."""

from __future__ import annotations

import os
import sys
from typing import TextIO

COLOURS = {"green": "32", "yellow": "33", "red": "31", "blue": "34", "cyan": "36", "dim": "2"}
# What becomes of a job, in the words of the run log -> its colour
EVENTS = {
    "built": "green",
    "restored": "cyan",
    "published": "cyan",
    "fresh": "dim",
    "failed": "red",
    "stopped": "yellow",
    "not run": "yellow",
}


def coloured(out: TextIO | None = None) -> bool:
    """Is `out`, or standard output, a terminal that shows colours, and may it? FORCE_COLOR stands for a terminal.

    NO_COLOR (https://no-color.org) goes before FORCE_COLOR (https://force-color.org); an empty variable is none.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or terminal(out)


def terminal(out: TextIO | None = None) -> bool:
    """Is `out`, or standard output, a terminal that can move its cursor?"""
    return (out or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str) -> str:
    return f"\033[{COLOURS[colour]}m{text}\033[0m"
