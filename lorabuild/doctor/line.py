"""What was looked at, how it is, and what helps where it is not well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from lorabuild.errors import UserError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Line:
    """`warn`: a build works, but not as it could; `fail`: something does not work. Both have a `remedy`."""

    topic: str
    level: Level
    said: str
    remedy: str = ""


def ok(topic: str, said: str) -> Line:
    return Line(topic, "ok", said)


def warn(topic: str, said: str, remedy: str) -> Line:
    return Line(topic, "warn", said, remedy)


def fail(topic: str, said: str, remedy: str) -> Line:
    return Line(topic, "fail", said, remedy)


def looked(topic: str, look: Callable[[], Iterable[Line]]) -> Iterator[Line]:
    """The lines of `look`. What goes wrong in it is a line, too: a doctor that falls ill helps nobody."""
    try:
        yield from look()
    except UserError as error:
        for problem in error.problems:
            yield fail(topic, one_line(str(problem)), "put right what it says")
    except ImportError as error:
        yield fail(
            topic, f"cannot be looked at: {one_line(str(error))}", "put right the packages that are told of here"
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        yield fail(topic, f"{where}{error.strerror or one_line(str(error))}", "see that the path is there and readable")
    except Exception as error:
        said = f"cannot be told: {type(error).__name__}: {one_line(str(error))}"
        yield fail(topic, said, "a fault of lorabuild's: please report this line")


def one_line(text: str, most: int = 300) -> str:
    return " ".join(text.split())[:most]


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size < 1e11 else f"{size / 1e9:,.0f} GB"
