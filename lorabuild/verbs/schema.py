"""`lorabuild schema [KIND]`: JSON Schemas of manifests, recipes and lorabuild.toml, for editors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lorabuild.cli import find_root
from lorabuild.errors import UsageError
from lorabuild.files import staged
from lorabuild.verbs.parser import Parser

HELP = """\
JSON Schemas for editors that complete and check TOML: keys, their values, a line on each.

  lorabuild schema lora          print the one of projects/*/lora.toml; recipe: of recipes/*.toml; lorabuild: of lorabuild.toml
  lorabuild schema -o schema     write all three into a folder, and a .taplo.toml at the top of the repository, if
                                 there is none, by which Even Better TOML (VS Code) and taplo find them

`lorabuild init` writes them into schema/, and what it and `new` make names them in its first line, as any file may:
#:schema ../../schema/lora.schema.json"""
KINDS = ("lora", "recipe", "lorabuild")


def parser() -> Parser:
    found = Parser(prog="lorabuild schema", description=HELP)
    found.add_argument("kind", metavar="KIND", nargs="?", choices=KINDS, help=", ".join(KINDS))
    found.add_argument("-o", "--out", metavar="DIR", type=Path, help="write all into this folder")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    if (options.kind is None) == (options.out is None):
        raise UsageError(f"lorabuild schema: either one of {', '.join(KINDS)}, or -o DIR for all")
    from lorabuild.manifest.editors import SCHEMAS, taplo, text

    if options.kind:
        print(text(SCHEMAS[options.kind]()), end="")
        return 0
    files = {options.out / f"{name}.schema.json": text(make()) for name, make in SCHEMAS.items()}
    root = find_root(Path.cwd()) or options.out.parent
    rules = root / ".taplo.toml"
    if not rules.exists():
        files[rules] = taplo(Path(os.path.relpath(options.out, root)).as_posix())
    options.out.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        with staged(path, path.parent) as part:
            part.write_text(content)
        print(f"wrote {path}")
    return 0
