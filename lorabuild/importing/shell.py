"""Read commands as they are pasted from a guide: words, quotes, comments, and three ways to go on in the next line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lorabuild.errors import JobError

# At a line's end: bash's, cmd's and PowerShell's sign that it goes on. A comment may follow in a paste, though bash
# would end the command there.
_GOES_ON = re.compile(r"(?:^|(?<=\s))[\\^`]\s*(?:#.*)?$|[\\^`]\s*$")
# A line that begins so belongs to the command above it, whatever that ended in: an option, a quoted key=value, a bracket.
_BELONGS = re.compile(r"\s+[\"'](?:\w+=|--)|\s*(?:--|[–—−][-–—−]?)\w|\s*\)\s*$")
_IGNORED = re.compile(r"\s*(?:```.*|#.*|(?i:rem)\b.*|::.*|@echo\b.*)?$")
_PROMPT = re.compile(r"^\s*(?:\$|PS [^>]*>|[A-Za-z]:\\[^>]*>)\s+(?=\w)")
_SET = re.compile(r"\s*(?:export\s+|set\s+|SET\s+|\$env:|\$)?\"?([A-Za-z_]\w*)\s*=\s*(.*)$")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}|\$env:([A-Za-z_]\w*)|\$([A-Za-z_]\w*)|%([A-Za-z_]\w*)%")
_ENDS = ("&&", "||", ";", "|", "&")
# What word processors and web pages make of quotes and of --: sign -> what may end what it begins.
_QUOTES = {'"': '"', "'": "'", **dict.fromkeys("“”„‟", '“”"'), **dict.fromkeys("‘’‚‛", "‘’'")}
_DASHES = re.compile(r"[-–—−]*[–—−][-–—−]*(?=[A-Za-z]\w)")
_NO_WIDTH = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))


@dataclass(frozen=True)
class Command:
    """The words of a command, and the line, from 1, that each stands in."""

    words: tuple[str, ...]
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Script:
    """The commands of a text, and the names of variables that they use and nobody sets.

    `typeset`: some quotes or dashes were typographic, and were read as the plain ones that they were made of.
    """

    commands: tuple[Command, ...]
    unset: tuple[str, ...]
    typeset: bool = False


def read_script(text: str, file: str) -> Script:
    """The commands of a pasted text, variables filled in. Raises JobError, with the line, for a quote without an end."""
    variables: dict[str, str] = {}
    commands: list[Command] = []
    unset: dict[str, None] = {}
    typeset: list[str] = []
    text = text.translate(_NO_WIDTH)

    def filled(word: str) -> str:
        def value(match: re.Match) -> str:
            name = next(filter(None, match.groups()))
            if name not in variables:
                unset[name] = None
                return match[0]
            return variables[name]

        return _VARIABLE.sub(value, word)

    for first, whole in _logical_lines(text):
        words, lines = [], []
        assigned = _assignment(whole)
        if assigned is not None:
            name, rest = assigned
            found = list(_words(rest, first, file, typeset))
            if len(found) <= 1:
                variables[name] = filled(found[0][0]) if found else ""
                continue
        for word, line in [*_words(whole, first, file, typeset), (";", first)]:
            if word in _ENDS:
                if words:
                    commands.append(Command(tuple(words), tuple(lines)))
                words, lines = [], []
            else:
                words.append(filled(word))
                lines.append(line)
    return Script(tuple(commands), tuple(unset), bool(typeset))


def _assignment(line: str) -> tuple[str, str] | None:
    """(name, rest of the line) where a line sets a variable and does nothing else."""
    if (match := _SET.match(line)) is None or match[2].startswith(("(", "@(")):
        return None
    return match[1], match[2].rstrip('"') if match[2].count('"') % 2 else match[2]


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of the first line, text) of each command line; lines within stay apart by newlines, so that words know theirs."""
    held: list[str] = []
    start, goes_on = 1, False
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        if held and (goes_on or _BELONGS.match(line)):
            held.append(_without_sign(line))
            goes_on = bool(_GOES_ON.search(line)) or (goes_on and _comment_only(line))
            continue
        if held and _comment_only(line):
            held.append("")  # a comment between options
            continue
        if held:
            yield start, "\n".join(held)
            held = []
        goes_on = False
        if _IGNORED.match(line):
            continue
        line = _PROMPT.sub("", line)
        held, start, goes_on = [_without_sign(line)], number, bool(_GOES_ON.search(line))
    if held:
        yield start, "\n".join(held)


def _comment_only(line: str) -> bool:
    return line.lstrip().startswith("#")


def _without_sign(line: str) -> str:
    return _GOES_ON.sub("", line)


def _words(text: str, first: int, file: str, typeset: list[str]) -> Iterator[tuple[str, int]]:
    """(word, line) as a shell would split them. A backslash stays, but before a space or a quote: Windows has paths of them.

    Typographic signs that were read as plain ones are added to `typeset`; within other quotes they stay.
    """
    word: list[str] | None = None
    quote, line, opened = "", first, first
    at = 0
    while at < len(text):
        sign = text[at]
        if sign == "\n":
            line += 1
        if quote:
            if sign in _QUOTES[quote]:
                quote = ""
            elif sign == "\\" and quote == '"' and text[at + 1 : at + 2] == '"' and text[at + 2 : at + 3].strip():
                word.append('"')
                at += 1
            else:
                word.append(sign)
        elif sign in "\"'" or (sign in _QUOTES and (not word or word[-1] == "=")):
            quote, opened = sign, line
            word = [] if word is None else word
            typeset += [sign] if sign not in "\"'" else []
        elif not word and (dashes := _DASHES.match(text, at)):
            word = ["--"]
            typeset.append(dashes[0])
            at = dashes.end()
            continue
        elif sign.isspace():
            if word is not None:
                yield "".join(word), line - (sign == "\n")
            word = None
        elif sign == "#" and word is None:
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
            continue
        elif sign in ";|&" and word is None:
            both = text[at : at + 2]
            yield (both if both in _ENDS else sign), line
            at += len(both if both in _ENDS else sign)
            continue
        elif sign == ";":
            yield "".join(word or ()), line
            yield ";", line
            word = None
        elif sign == "\\" and text[at + 1 : at + 2] in (" ", '"', "'", "$"):
            word = [*(word or ()), text[at + 1]]
            at += 1
        else:
            word = [*(word or ()), sign]
        at += 1
    if quote:
        raise JobError(f"{file}:{opened}: a quote ({quote}) begins here and never ends")
    if word is not None:
        yield "".join(word), line
