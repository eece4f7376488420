"""`lorabuild explain CODE`: what a finding of `check` means, why it matters, and what helps."""

from __future__ import annotations

from collections.abc import Sequence

from lorabuild.codes import CODES
from lorabuild.errors import UsageError
from lorabuild.findings import known_code
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import table

HELP = "A finding's code (LB051) -> what it means and what helps; without a code, all of them."


def parser() -> Parser:
    found = Parser(prog="lorabuild explain", description=HELP)
    found.add_argument("code", nargs="?", metavar="CODE")
    return found


def main(args: Sequence[str]) -> int:
    name = parser().parse_args(args).code
    if name is None:
        print("\n".join(table([[code, one.level, one.title] for code, one in CODES.items()])))
        return 0
    try:
        code = known_code(name)
    except ValueError as error:
        raise UsageError(f"explain: {error}") from None
    print(f"{code}: {CODES[code].title} ({CODES[code].level})\n\n{CODES[code].text}")
    return 0
