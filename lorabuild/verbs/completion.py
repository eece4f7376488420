"""`lorabuild completion SHELL`: a script that completes verbs, options, targets, projects and blocks at a press of Tab."""

from __future__ import annotations

from collections.abc import Sequence

from lorabuild.completing.shells import SHELLS
from lorabuild.verbs.parser import Parser

HELP = """\
A script for your shell, printed; it asks lorabuild for targets and projects of the repository where you are.

  bash   lorabuild completion bash > ~/.local/share/bash-completion/completions/lorabuild
  zsh    lorabuild completion zsh > "${fpath[1]}/_lorabuild"
  fish   lorabuild completion fish > ~/.config/fish/completions/lorabuild.fish

Write it anew after an update of lorabuild: verbs and options stand in it."""


def parser() -> Parser:
    found = Parser(prog="lorabuild completion", description=HELP)
    found.add_argument("shell", metavar="SHELL", choices=list(SHELLS), help=", ".join(SHELLS))
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    from lorabuild.completing.commands import commands

    print(SHELLS[options.shell](commands()), end="")
    return 0
