"""`lorabuild import FILE`: an sd-scripts command, config or data set file, or a LoRA's own metadata -> a manifest."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lorabuild.cli import find_root
from lorabuild.errors import UsageError
from lorabuild.files import rewrite
from lorabuild.importing.base import known_bases
from lorabuild.importing.draft import Draft
from lorabuild.importing.lora import of_lora
from lorabuild.importing.read import imported, read_text
from lorabuild.names import RESERVED, name_problem, quoted
from lorabuild.scaffold.schemas import first_line, there
from lorabuild.verbs.common import SUFFIX, header_of, warn
from lorabuild.verbs.parser import Parser

HELP = """\
Turns what another trainer was told into a manifest, on stdout or as projects/NAME/lora.toml:

  lorabuild import train.sh --name ember       commands as pasted from a guide: sd-scripts, resize_lora, chop_blocks
  lorabuild import - < train.txt               the same from standard input
  lorabuild import config.toml dataset.toml    sd-scripts' files: arguments, a data set, or both
  lorabuild import ember.safetensors           what a LoRA says of its own making

What is no key here stands in the manifest as a comment, with why. Warnings tell what would change the result."""


def parser() -> Parser:
    found = Parser(prog="lorabuild import", description=HELP)
    found.add_argument("files", metavar="FILE", nargs="+", help="commands, .toml or .safetensors; - is standard input")
    found.add_argument("-o", "--out", metavar="OUT", type=Path, help="the manifest: projects/NAME/lora.toml")
    found.add_argument("--name", metavar="NAME", help="the project: its manifest is written to projects/NAME/lora.toml")
    found.add_argument("--base", metavar="BASE", help="the base of lorabuild.toml to train on, whatever was told")
    found.add_argument("--force", action="store_true", help="replace a manifest that is there")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(args)
    root = find_root(Path.cwd())
    out = _out(options.out, options.name, root)
    if out and out.exists() and not options.force:
        raise UsageError(f"{out}: is there already; --force replaces it")
    draft = _draft(options.files, known_bases(root), options.base, out.parent if out else None)
    text = draft.text().lstrip("\n")
    if out:
        rewrite(out, (_schema(out, root) + text).encode(), out.parent)
        print(f"{out}: {_counted(draft)}")
    else:
        print(text, end="")
    for line in dict.fromkeys(draft.warnings):
        warn(line)
    if draft.base_lines:
        sys.stderr.write(
            "lorabuild.toml needs this base, `file` as it lies on this machine (or choose another by --base):\n\n"
        )
        sys.stderr.writelines(f"  {line}\n" for line in draft.base_lines)
    return 0


def _schema(out: Path, root: Path | None) -> str:
    """The first line of a project's manifest, for editors, as `new` writes it."""
    path = Path(os.path.abspath(out))  # ../ember is ember, and a link stays one
    if root is None or not there("lora", root) or not path.is_relative_to(root):
        return ""
    return first_line("lora", path.relative_to(root).as_posix())


def _draft(files: Sequence[str], bases: dict, base: str | None, manifest: Path | None) -> Draft:
    loras = [file for file in files if file.casefold().endswith(SUFFIX)]
    if loras and len(files) > 1:
        raise UsageError(f"{loras[0]}: what a LoRA says of itself is imported alone")
    if files.count("-") > 1:
        raise UsageError("-: standard input can be read once")
    if loras:
        return of_lora(header_of(Path(loras[0])), loras[0], bases, base)
    sources = [(file, sys.stdin.read() if file == "-" else read_text(Path(file))) for file in files]
    return imported(sources, Path.cwd(), bases, base, manifest)


def _out(out: Path | None, name: str | None, root: Path | None) -> Path | None:
    """Where the manifest goes. Raises UsageError for a name that no project may have."""
    if out and name:
        raise UsageError("-o and --name say one thing: one of them is enough")
    if name is None:
        if out and out.suffix != ".toml":
            raise UsageError(f"{out}: a manifest is called lora.toml, in the project's folder")
        return out
    if problem := name_problem(name):
        raise UsageError(f"--name {problem}")
    if name in RESERVED:
        raise UsageError(f"--name {quoted(name)}: is the name of a stage or command: choose another")
    return Path(os.path.relpath((root or Path.cwd()) / "projects" / name / "lora.toml"))


def _counted(draft: Draft) -> str:
    keys = sum(
        len(table) for table in [*draft.tables.values(), *(one for many in draft.lists.values() for one in many)]
    )
    return f"{keys} keys; {len(draft.notes)} comments on what is none"
