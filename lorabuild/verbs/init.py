"""`lorabuild init`: make a folder a repository that builds at once; what stands there stays."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lorabuild.cli import find_root
from lorabuild.errors import UsageError
from lorabuild.files import rewrite
from lorabuild.scaffold.repository import Step, is_of_others, steps
from lorabuild.verbs.parser import Parser

HELP = """\
Make a folder a repository: dodo.py, doit's settings, lorabuild.toml, recipes/, projects/, schema/ for editors, .gitignore.
What stands there already is added to (pyproject.toml or doit.cfg, .gitignore) or left; run again, it adds what is missing.
Beside a dodo.py of your own doit stays yours, and `lorabuild build` builds.

  lorabuild init            this folder
  lorabuild init my-loras   a folder, made if need be"""


def parser() -> Parser:
    found = Parser(prog="lorabuild init", description=HELP)
    found.add_argument("folder", metavar="DIR", nargs="?", default=".", help="the folder; this one without it")
    return found


def main(args: Sequence[str]) -> int:
    given = parser().parse_args(args).folder
    if not given:
        raise UsageError('"": no folder\'s name; without one it is this folder')
    root = Path(given).absolute()
    if root.exists() and not root.is_dir():
        raise UsageError(f"{given}: not a folder")
    if (around := find_root(root.resolve().parent)) is not None:
        raise UsageError(f"{given}: lies in the repository {around}: `lorabuild new NAME` adds a project to it")
    found = steps(root)
    changes = [step for step in found if step.data is not None]
    for step in changes:
        _write(step, root)
    (root / "projects").mkdir(exist_ok=True)
    if not changes:
        print(
            f"nothing to do: {given if given != '.' else 'this folder'} is a repository, and nothing of it is missing"
        )
        return 0
    for step in found:
        print(step.said)
    there = "" if given == "." else f"cd {shlex.quote(given)} && "
    print(
        f"next:\n  {there}lorabuild new NAME --images FOLDER\n  {'lorabuild build' if is_of_others(root) else 'doit'}"
    )
    return 0


def _write(step: Step, root: Path) -> None:
    step.path.parent.mkdir(parents=True, exist_ok=True)
    assert step.data is not None
    rewrite(step.path, step.data, step.path.parent)
