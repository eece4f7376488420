"""Hold what a user's files told, whatever kind they are of, and give each value its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.errors import near_miss
from lorabuild.importing.arguments import ARGUMENTS, SECRET, UNREAD
from lorabuild.tomltext import comment, written
from lorabuild.training.optimizers import parsed


@dataclass
class Told:
    """What all files together told.

    `arguments`: sd-scripts' names with typed values. `datasets`: of a data set TOML, with its [general]. `notes`: what is
    taken over nowhere, a line each. `warnings`: what of it changes the result. `misread`: what was told and not understood. `folder`: where relative paths are seen from.
    """

    folder: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    general: dict[str, Any] = field(default_factory=dict)
    datasets: list[dict[str, Any]] | None = None
    resize: dict[str, Any] | None = None
    chop: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    misread: set[str] = field(default_factory=set)
    trains: bool = False  # is a training told of, so that sd-scripts' defaults are part of it?
    asked: str = "sd-scripts' default: not told"  # what stands beside a default

    def note(self, name: str, value: Any, why: str) -> None:
        """A line for what is no key here. Nobody's secret is repeated."""
        shown = "…" if name in SECRET else written(value)
        self.notes.append(f"{name} = {shown}: {why}" if value is not None else f"{name}: {why}")

    def tell(self, name: str, value: Any, where: str) -> None:
        """Take an argument over, by its name; of what is told twice the later counts, as in sd-scripts."""
        known = self._known(name, value, where)
        if known is None:
            return
        try:
            found = typed(ARGUMENTS[known].kind, value)
        except ValueError as error:
            self.note(known, value, f"not understood: {error}")
            self.misread.add(known)
            self.warnings.append(f"{where}: {known}: {error}: not taken over")
            return
        if known in self.arguments and self.arguments[known] != found:
            self.note(known, self.arguments[known], "told again later, which counts")
        self.arguments[known] = found

    def _known(self, name: str, value: Any, where: str) -> str | None:
        """The argument that is meant: argparse takes a beginning for the whole where only one argument begins so."""
        if name in ARGUMENTS:
            return name
        if name in UNREAD:
            self.note(name, value, UNREAD[name])
            return None
        begun = [one for one in ARGUMENTS if one.startswith(name)]
        if len(begun) == 1:
            return begun[0]
        near = near_miss(name, ARGUMENTS)
        self.note(name, value, f"no argument of sd-scripts' sdxl_train_network.py{near}")
        self.warnings.append(f"{where}: {comment(name)}: no argument of sd-scripts{near}: not taken over")
        return None


def typed(kind: str, value: Any) -> Any:
    """A value of a kind: from text or from a list of words (command line, metadata), or as TOML has it. Raises ValueError."""
    if isinstance(value, list) and kind not in ("texts", "floats", "pairs", "resolution"):
        if len(value) > 1:
            raise ValueError(f"expected one value, got {written(value)}")
        value = value[0] if value else True
    return _KINDS[kind](value)


def _flag(value: Any) -> bool:
    known = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.casefold() in known:
        return known[value.casefold()]
    raise ValueError(f"expected nothing behind it, got {written(value)}")


def _number(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            if isinstance(value, bool) or (of is int and isinstance(value, float) and not value.is_integer()):
                raise ValueError
            number = of(value)
        except (ValueError, OverflowError, TypeError):
            kind = "a whole number" if of is int else "a number"
            raise ValueError(f"expected {kind}, got {written(value)}") from None
        return number

    return read


def _share(value: Any) -> Any:
    """Steps, or a part of all steps: 0.1 or "10%"."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return value.strip()
    number = _float(value)
    return int(number) if (number.is_integer() and number >= 1) or number == 0 else number


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"expected text, got {written(value)}")
    return str(value)


def _resolution(value: Any) -> Any:
    """ "1024,1024" -> [1024, 1024], "1024" -> 1024."""
    words = value if isinstance(value, list) else [value]
    sides = [_int(side) for word in words for side in (word.split(",") if isinstance(word, str) else [word])]
    if len(sides) not in (1, 2):
        raise ValueError(f"expected one side or two, got {written(value)}")
    return sides if len(sides) == 2 else sides[0]


def _pairs(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    return parsed(_listed(value))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_int, _float = _number(int), _number(float)
_KINDS: dict[str, Callable[[Any], Any]] = {
    "flag": _flag,
    "int": _int,
    "float": _float,
    "share": _share,
    "text": _text,
    "texts": lambda value: [_text(one) for one in _listed(value)],
    "floats": lambda value: [_float(one) for one in _listed(value)],
    "pairs": _pairs,
    "resolution": _resolution,
}
