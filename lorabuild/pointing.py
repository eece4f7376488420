"""Show the line of a TOML file that a message is about, and point at what in it is meant."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

WIDTH = 100  # columns of a line that are shown: more are cut off on both sides of what is meant
CONTEXT = 20  # columns before it that are shown then

_KEY = re.compile(r'^((?:[\w@-]+|"[^"]*")(?:\.(?:[\w@-]+|"[^"]*"))*): ')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_PAIR = re.compile(r'^\s*((?:[\w.-]|"[^"]*"|\'[^\']*\'|\s(?=[.=\s]))+?)\s*=\s*')
_HEADER = re.compile(r"^\s*\[\[?\s*(.*?)\s*\]\]?\s*(?:#.*)?$")
_OF_A_KEY = ("unknown key", "unknown table", "not set", "no such table")
_PAIRS = {"[": "]", "{": "}"}


def pointed(root: Path, file: str, line: int, message: str) -> list[str]:
    """Two lines to print below a message: the source line with its number, and ^~~~ below what is meant.

    None for what is no TOML file, or has no such line. `file` is as messages call it, `line` from 1.
    """
    lines = _lines(root / file) if line and file.endswith(".toml") else ()
    if not 0 < line <= len(lines) or (part := span(lines[line - 1], message)) is None:
        return []
    start, end = part
    text, start, end = _window(lines[line - 1].replace("\t", " "), start, end)
    shown = "".join(one if one.isprintable() else "�" for one in text)
    gutter = " " * len(str(line))
    below = " " * columns(shown[:start]) + "^" + "~" * max(0, columns(shown[start:end]) - 1)
    return [f"  {line} | {shown}", f"  {gutter} | {below}"]


def span(line: str, message: str) -> tuple[int, int] | None:
    """Where in a line of TOML stands what the message speaks of, as indices; None if nothing stands in it.

    By its key: the value, or the key itself where that is what is wrong. A text that the message quotes goes before.
    """
    if not line.strip() or line.lstrip().startswith("#"):
        return None
    if not message.startswith("wrong TOML") and (header := _HEADER.match(line)) and "=" not in header[1]:
        return header.span(1) if header[1] else _whole(line)
    named = _KEY.match(message)
    key = named[1].rpartition(".")[2].strip('"') if named else ""
    found = _own(line, key) or _PAIR.match(line)
    if found is None or message.startswith("wrong TOML"):
        return _quoted(line, message, _whole(line)) or _whole(line)
    said = message[named.end() :] if named else message
    if said.startswith(_OF_A_KEY) and found.re is not _PAIR:
        return found.span(1)
    value = (found.end(), _end(line, found.end()))
    return _quoted(line, said, value) or (value if value[0] < value[1] else found.span(1))


def columns(text: str) -> int:
    """How wide a terminal shows it: ideographs and emoji take two columns, accents none."""
    wide = {"W": 2, "F": 2}
    return sum(0 if unicodedata.combining(one) else wide.get(unicodedata.east_asian_width(one), 1) for one in text)


def _own(line: str, key: str) -> re.Match[str] | None:
    """The key where it is set in this line, maybe in an inline table, up to its value."""
    if not key:
        return None
    return re.search(rf"""(?:^|(?<=[\s{{,.]))(["']?{re.escape(key)}["']?)\s*=\s*""", line)


def _quoted(line: str, said: str, within: tuple[int, int]) -> tuple[int, int] | None:
    """The first text that the message quotes and the line has there."""
    for text in _QUOTED.findall(said):
        for spelled in (text, text.replace('"', "'"), _bare(text)):
            at = line.find(spelled, *within) if spelled else -1
            if at >= 0:
                return at, at + len(spelled)
    return None


def _bare(text: str) -> str:
    """What is quoted, if it is long enough not to be found by chance."""
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    return found if len(found) > 2 else ""


def _whole(line: str) -> tuple[int, int]:
    """All but what is blank around it, a comment, and a comma."""
    start = len(line) - len(line.lstrip())
    end = _end(line, start)
    return (start, end) if end > start else (start, len(line.rstrip()))


def _end(line: str, start: int) -> int:
    """Where the value that begins at `start` ends: before a comment, a comma, or a bracket that closes what is around."""
    closing: list[str] = []
    quote, at = "", start
    while at < len(line):
        sign = line[at]
        if quote:
            if sign == "\\" and quote == '"':
                at += 1
            elif sign == quote:
                quote = ""
        elif sign in "\"'":
            quote = sign
        elif sign in _PAIRS:
            closing.append(_PAIRS[sign])
        elif closing and sign == closing[-1]:
            closing.pop()
        elif sign == "#" or (not closing and sign in ",]}"):
            break
        at += 1
    return start + len(line[start:at].rstrip())


def _window(line: str, start: int, end: int) -> tuple[str, int, int]:
    """A long line cut, with … where something is left out, and the place in what is left."""
    line = line.rstrip()
    if len(line) <= WIDTH:
        return line, start, end
    first = max(0, start - CONTEXT) if end > WIDTH else 0
    last = min(len(line), first + WIDTH)
    head, tail = "…" * (first > 0), "…" * (last < len(line))
    moved = first - len(head)
    return head + line[first:last] + tail, start - moved, min(end, last) - moved


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_bytes().decode("utf-8-sig", "replace")
    except OSError:
        return ()
    return tuple(text.replace("\r\n", "\n").split("\n"))
