"""What each command takes, read from the parsers that read it: options, their values, and what stands without one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module

from lorabuild import cli
from lorabuild.names import REPOSITORY_VERBS

# A value's name in the help -> a kind of candidates.py. Others are files or the user's own words.
POSITIONAL = {
    "NAME": "projects",
    "PROJECT": "projects",
    "TARGET": "targets",
    "FILE|NAME": "projects",
    "NAME|FILE": "projects",
    "A": "projects",
    "B": "projects",
    "CODE": "codes",
}
OPTIONAL = {"TARGET": "targets", "BLOCKS": "blocks", "RECIPE": "recipes", "BASE": "bases"}
NEW = {"new", "init"}  # what they name is not there yet


@dataclass(frozen=True)
class Option:
    """`flags` mean the same. `takes`: a value, of a kind that can be told, or one of `choices`."""

    flags: Sequence[str]
    help: str
    takes: bool = False
    kind: str = ""
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class Command:
    """A verb. `kind`: what stands in it without an option, or one of `choices`; `files`: or a file."""

    name: str
    help: str
    options: Sequence[Option] = field(default_factory=tuple)
    kind: str = ""
    choices: Sequence[str] = ()
    files: bool = False


def commands() -> list[Command]:
    """Every command in the order of the help."""
    return [*BUILDING, *(_command(verb) for verb in dict.fromkeys((*cli.VERBS, *REPOSITORY_VERBS)))]


# doit's own, whose options it reads itself
BUILDING = [
    Command(
        "build",
        "build what is stale",
        (
            Option(("-n", "--process"), "jobs at once", takes=True),
            Option(("-c", "--continue"), "after a failure, build the others"),
            Option(("-a", "--always-execute"), "build the targets anew"),
            Option(("--json",), "what was done, as JSON"),
        ),
        "targets",
    ),
    Command("list", "the targets", (Option(("--all",), "every job"),), "projects"),
    Command("clean", "remove files in build/", (Option(("-n", "--dry-run"), "tell only"),), "targets"),
    Command("forget", "drop what was built", (Option(("-a", "--all"), "all of it"),), "targets"),
]


def _command(verb: str) -> Command:
    parser = import_module(f"lorabuild.verbs.{verb}").parser()
    actions = [action for action in parser._actions if action.dest != "help"]
    options = [_option(action, parser) for action in actions if action.option_strings]
    plain = [action for action in actions if not action.option_strings]
    choices = [str(one) for action in plain for one in action.choices or ()]
    kind = POSITIONAL.get(str(plain[0].metavar), "") if plain and verb not in NEW else ""
    files = any(str(action.metavar).startswith("FILE") or action.metavar in ("A", "B") for action in plain)
    return Command(verb, _first_sentence(parser.description or ""), options, kind, choices, files)


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> Option:
    takes = action.nargs != 0
    kind = OPTIONAL.get(str(action.metavar), "")
    choices = [str(one) for one in action.choices or ()]
    return Option(action.option_strings, _line(parser._get_formatter()._expand_help(action)), takes, kind, choices)


def _first_sentence(text: str) -> str:
    return _line(text).partition(". ")[0].removesuffix(".")


def _line(text: str) -> str:
    return " ".join(text.split())
