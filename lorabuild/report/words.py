"""How the pages say numbers: sizes, shares, times; filters for the templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def size(number: float | None) -> str:
    """Bytes for people: `112.4 MB`, `21.5 kB`, `812 B`."""
    if number is None:
        return "–"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"


def percent(share: float | None) -> str:
    """A share of 1: `61 %`, `3.4 %`, `0.02 %`."""
    if share is None:
        return "–"
    number = 100 * share
    return f"{number:.0f} %" if number >= 10 or number == 0 else f"{number:.1f} %" if number >= 1 else f"{number:.2g} %"


def seconds(number: float | None) -> str:
    """`0.04 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if number is None:
        return "–"
    if number < 10:
        return f"{number:.2g} s"
    whole = round(number)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def number(value: Any) -> str:
    """A number in its shortest exact spelling up to six digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


FILTERS: dict[str, Callable[..., str]] = {"size": size, "percent": percent, "seconds": seconds, "number": number}
