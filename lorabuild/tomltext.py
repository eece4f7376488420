"""Write values and comments as TOML."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lorabuild.names import quoted

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # not allowed in a comment


def written(value: Any, number: Callable[[int | float], str] = repr) -> str:
    """A value on one line. Whole numbers, floats, text, true and false, lists and tables of them; None is left out."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(written(one, number) for one in value if one is not None)}]"
    if isinstance(value, dict):
        inner = [f"{key_written(key)} = {written(one, number)}" for key, one in value.items() if one is not None]
        return f"{{ {', '.join(inner)} }}" if inner else "{}"
    return text_written(str(value))


def key_written(key: str) -> str:
    """A key, in quotes where it needs them."""
    return key if _BARE.fullmatch(key) else text_written(key)


def comment(text: str) -> str:
    """Text that may stand after a `#`: on one line, without control characters."""
    return _CONTROL.sub(" ", text.encode(errors="backslashreplace").decode()).strip()


def text_written(text: str) -> str:
    """Text in quotes. DEL, which JSON leaves as it is, may not stand in TOML."""
    return quoted(text).replace("\x7f", "\\u007f")
