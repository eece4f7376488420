"""Read a verb's arguments: what is wrong with them is one line. Imports nothing that may be missing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from lorabuild.errors import UsageError

# Options that hold several values -> what joins them.
JOINED_BY = {"keep": ",", "weights": ",", "recipe": ":"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and leaves with the exit code of a usage error. An option may stand once."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.register("action", None, _Once)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


def _path(text: str) -> Path:
    """An empty name, as of a variable that is not set, would be the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("a name was expected, and it is empty")
    return Path(text)


class _Once(argparse.Action):
    """Stores a value; of an option that is given again, argparse would forget the first one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = vars(namespace).setdefault("given", set())
        if option_string and self.dest in given:
            joined = f': join the values by "{JOINED_BY[self.dest]}"' if self.dest in JOINED_BY else ""
            raise argparse.ArgumentError(self, f"given twice{joined}")
        given.add(self.dest)
        setattr(namespace, self.dest, values)
