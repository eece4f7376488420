"""`lorabuild doctor`: what this machine has for a build, each line with what helps where it is not well."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lorabuild.cli import find_root
from lorabuild.colours import coloured, paint
from lorabuild.doctor.examine import examine
from lorabuild.doctor.line import Line
from lorabuild.verbs.parser import Parser

HELP = """\
Looks at Python, packages, torch, GPUs, memory, disk, bases, tokenizers and the remote store. Works outside of a repository, too;
nothing is changed. Exit code 1 if something fails.

  ok    as it should be
  warn  a build works, but not as it could
  fail  something does not work

Below what is not ok stands what helps. With --fetch-tokenizer nothing is looked at, but CLIP's vocabulary, which a single-file base
needs, is fetched once from huggingface.co (0.5 MB) into the user's cache, and kept only if its sha256 is CLIP's."""

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def parser() -> Parser:
    found = Parser(prog="lorabuild doctor", description=HELP)
    found.add_argument("--json", action="store_true", help="the same as JSON (docs/doctor.md)")
    found.add_argument("--fetch-tokenizer", action="store_true", help="fetch CLIP's vocabulary, once")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    if options.fetch_tokenizer:
        from lorabuild.data.fetching import fetch_clip

        folder = fetch_clip()
        print(json.dumps({"fetched": str(folder)}) if options.json else f"CLIP's vocabulary is in {folder}")
        return 0
    here = Path.cwd()
    lines = []
    for line in examine(find_root(here), here):
        lines.append(line)
        if not options.json:
            print(_shown(line), flush=True)  # the last ones take seconds
    counts = Counter(line.level for line in lines)
    if options.json:
        print(
            json.dumps({"lines": list(map(asdict, lines)), "counts": {one: counts[one] for one in COLOURS}}, indent=2)
        )
    else:
        print(", ".join(f"{counts[level]} {level}" for level in COLOURS))
    return 1 if counts["fail"] else 0


def _shown(line: Line) -> str:
    level = f"{line.level:4}"
    said = f"{paint(level, COLOURS[line.level]) if coloured() else level}  {line.topic:10}  {line.said}"
    return f"{said}\n{'':18}-> {line.remedy}" if line.remedy else said
