"""A finding of `check` at its place, and the pages that tell of all codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorabuild.codes import CODES, FIXED, Code, Level
from lorabuild.errors import Problem, near_miss
from lorabuild.names import quoted


@dataclass(frozen=True, order=True)
class Finding:
    """What was found, and where: `file` as messages call it, `line` from 1, 0 if it has none."""

    file: str
    line: int
    code: str
    message: str
    level: Level

    def __str__(self) -> str:
        said = f"{self.level}: {self.message} [{self.code}]"
        return str(Problem(one_line(self.file), self.line, said))

    @property
    def facts(self) -> dict[str, Any]:
        """For --json: a line that is not known is null."""
        return {
            "code": self.code,
            "level": self.level,
            "file": self.file,
            "line": self.line or None,
            "message": self.message,
        }


def found(code: str, file: str, message: str, line: int = 0) -> Finding:
    """A finding, at the level that its code has by default."""
    return Finding(file, line, code, message, CODES[code].level)


def of_problems(code: str, problems: Iterable[Problem]) -> list[Finding]:
    """Findings of one code at the places of these problems. One without a place has its file in its message."""
    findings = []
    for problem in problems:
        file, message = problem.file, problem.message
        if not file:
            file, _, message = message.partition(": ")
        findings.append(found(code, file, message or problem.message, problem.line))
    return findings


def one_line(name: str) -> str:
    """A file's name as messages show it: what does not print, a line break say, is escaped."""
    return name if name.isprintable() else quoted(name)[1:-1]


def at_levels(findings: Iterable[Finding], levels: Mapping[str, Level]) -> list[Finding]:
    """The findings at the levels that a manifest gives their codes, in the order of their places; "off" drops them."""
    changed = (replace(one, level=levels.get(one.code, one.level)) for one in findings)
    return sorted({one for one in changed if one.level != "off"})


def known_code(name: str) -> str:
    """`name` as a code of the table. Raises ValueError with a near miss."""
    code = name.upper()
    if code not in CODES:
        raise ValueError(f"{quoted(name)}: no such code{near_miss(code, CODES)}; `lorabuild explain` lists them")
    return code


def changeable_code(name: str) -> str:
    """`name` as a code whose level a manifest may set. Raises ValueError."""
    if (code := known_code(name)) in FIXED:
        raise ValueError(f"{code}: {CODES[code].title}: that is always an error")
    return code


def page() -> str:
    """docs/findings.md: `python -m lorabuild.findings > docs/findings.md`."""
    head = (
        "# What `check` finds\n\n*Generated from the table of codes: `python -m lorabuild.findings > docs/findings.md`.*\n\n"
        'A level is `off`, `warn` or `error`; `[check] levels = { LB051 = "off", LB035 = "error" }` in a manifest, or in a recipe that it extends, '
        "changes it. `lorabuild explain LB051` prints the text.\n"
    )
    parts = [f"## {name}: {code.title}\n\n*{code.level}*. {code.text}\n" for name, code in CODES.items()]
    return "\n".join([head, *parts])


def index() -> str:
    """The table at the end of docs/troubleshooting.md: `python -m lorabuild.findings index`."""
    rows = [f"| [{name}]({_place(name, code)}) | {code.level} | {code.title} |" for name, code in CODES.items()]
    return "\n".join(["| code | level | |", "|---|---|---|", *rows]) + "\n"


def _place(name: str, code: Code) -> str:
    """Where the page of findings has it: a heading's anchor is its text in small letters, hyphens for spaces, without signs."""
    words = re.sub(r"[^\w -]", "", f"{name}: {code.title}".lower())
    return f"findings.md#{words.replace(' ', '-')}"


if __name__ == "__main__":
    print(index() if sys.argv[1:] == ["index"] else page(), end="")
