"""`lorabuild diff`: what differs between two projects, two commits of one, or two LoRA files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorabuild.errors import ConfigError, JobError, UsageError, UserError
from lorabuild.verbs.common import SUFFIX
from lorabuild.verbs.parser import Parser

HELP = """\
Compares A with B, each

  ember                 a project as it is now; ember@mini a variant of it
  HEAD~3:ember          a project at a commit, a branch or a tag, as git writes it: REVISION:NAME
  a.safetensors         a LoRA file; then B is one, too

Of projects: settings with their defaults, images and captions, artifacts by digest. Of files: metadata, and by block
‖ΔW_A − ΔW_B‖ / ‖ΔW_A‖ over the layers that both have. Exit 0: the same, 1: they differ, 2: cannot be told."""


def parser() -> Parser:
    found = Parser(prog="lorabuild diff", description=HELP)
    found.add_argument("a", metavar="A", help="a project, REVISION:project or a file")
    found.add_argument("b", metavar="B", help="the same kind of thing")
    found.add_argument("--json", action="store_true", help="the same as JSON")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    try:
        found, text = _compared(options.a, options.b)
    except ConfigError:
        raise
    except UserError as error:
        raise UsageError(*error.problems) from None  # 1 says that they differ: trouble is 2, as diff has it
    if options.json:
        print(json.dumps({"a": options.a, "b": options.b, **found}, indent=2, ensure_ascii=False))
    else:
        print(text or "no difference")
    return 0 if found["same"] else 1


def _compared(a: str, b: str) -> tuple[dict[str, Any], str]:
    """What differs as data, and as text."""
    files = [_is_file(one) for one in (a, b)]
    if files[0] != files[1]:
        raise UsageError(f"{a}, {b}: a file is compared with a file, a project with a project")
    if files[0]:
        from lorabuild.verbs import diff_files

        found = diff_files.diff_files(Path(a), Path(b))
        return found, diff_files.text_of(found)
    from lorabuild.verbs import diff_projects, diff_sides
    from lorabuild.verbs.within import engine_here

    with engine_here() as engine:
        sides = []
        for one in (a, b):
            revision, _, target = one.rpartition(":")  # a revision may have ":" (HEAD^{/fix: x}), a name has none
            name, at, variant = target.partition("@")
            if not name or (at and not variant):
                raise JobError(f"{one}: expected NAME, NAME@variant or REVISION:NAME")
            side = diff_sides.past(engine, revision, name, variant) if revision else None
            sides.append(side or diff_sides.present(engine, name, variant))
    found = diff_projects.diff_projects(*sides)
    return found, diff_projects.text_of(found)


def _is_file(argument: str) -> bool:
    return Path(argument).is_file() or argument.endswith(SUFFIX)
