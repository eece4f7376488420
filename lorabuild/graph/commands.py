"""All commands of a repository as doit knows them: ours instead of its own, our verbs, and what is refused."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from doit.cmd_base import Command as DoitCommand
from doit.cmd_base import ModuleTaskLoader
from doit.cmd_clean import Clean as DoitClean
from doit.cmd_clean import opt_clean_dryrun
from doit.cmd_forget import Forget as DoitForget
from doit.cmd_forget import opt_forget_all
from doit.cmd_list import List as DoitList
from doit.doit_cmd import DoitMain

from lorabuild.errors import UsageError, UserError
from lorabuild.graph.books import DOIT_CONFIG
from lorabuild.graph.command import Command, complain
from lorabuild.graph.run import Run
from lorabuild.graph.tasks import clean, engine, task_lorabuild
from lorabuild.names import REPORT, REPOSITORY_VERBS


class Clean(Command, DoitClean):
    """`doit clean [TARGET]`: removes named files in build/, never the store."""

    writes = True
    cmd_options = (opt_clean_dryrun,)

    def _execute(self, dryrun: bool, pos_args: Sequence[str] = ()) -> None:  # type: ignore[override]  # doit passes what the signature names
        if REPORT in pos_args:
            folder = engine().root / "build" / REPORT
            print(f"{'would remove' if dryrun else 'removed'} {folder.relative_to(engine().root)}")
            if not dryrun:
                shutil.rmtree(folder, ignore_errors=True)
        named = [name for name in pos_args if name != REPORT]
        for name in self.jobs_of(named) if named or not pos_args else ():
            clean(name, dryrun)


class Forget(Command, DoitForget):
    """`doit forget TARGET`: drops the record of what was built, so that it is built again."""

    writes = True
    cmd_options = (opt_forget_all,)

    def _execute(self, forget_all: bool, pos_args: Sequence[str] = ()) -> None:  # type: ignore[override]  # doit passes what the signature names
        if not pos_args and not forget_all:
            raise UsageError("forget: name a target, or --all: what is forgotten is built again, trainings too")
        named = [name for name in pos_args if name != REPORT]  # of which nothing is remembered
        for name in self.jobs_of(named) if named or forget_all else ():
            try:
                forgotten = engine().forget(name)
            except UserError:
                forgotten = False  # its inputs are not there: nothing can stand under its present key
            if forgotten:
                print(f"forgot {name}")


class List(Command, DoitList):
    """`doit list [--all] [TARGET …]`: the stages and projects, or every job."""

    def execute(self, params: Any, args: list[str]) -> int:
        """doit's own word on a name that it does not know has no near miss."""
        self.jobs_of(args)
        return super().execute(params, args)

    def _list_all(self, include_subtasks: bool) -> list[Any]:
        """A sweep's variants are many: they are listed with the jobs."""
        return [one for one in super()._list_all(include_subtasks) if include_subtasks or "@" not in one.name]


def _verb(name: str) -> type[DoitCommand]:
    """A verb of ours as a command of doit: `doit plan` is `lorabuild plan`. It opens the repository by itself."""

    def parse_execute(self: DoitCommand, args: list[str]) -> int:
        return import_module("lorabuild.cli").run_verb(name, _typed(name, args))  # by name: faces are above us

    return type(name.capitalize(), (DoitCommand,), {"name": name, "parse_execute": parse_execute})


def _typed(name: str, args: list[str]) -> list[str]:
    """What stands behind a verb on the command line. doit itself takes every `a=b` out, for variables of its own."""
    words = sys.argv[1:]
    behind = words[words.index(name) + 1 :] if name in words else []
    return behind if [word for word in behind if word.startswith("-") or "=" not in word] == args else args


# Commands of doit's that speak of its own books, which are not kept here, and what to say instead.
REFUSED = {
    "dumpdb": "`lorabuild status` shows what is known",
    "ignore": "`[build] default` in lorabuild.toml, or named targets, say what is built",
    "info": "`lorabuild why TARGET` tells what makes it stale",
    "reset-dep": "what is fresh is told by content; `lorabuild why TARGET` says why it is not",
    "strace": "what a job reads is in its manifest; `lorabuild why TARGET` tells of it",
}


def _refused(name: str) -> type[DoitCommand]:
    def parse_execute(self: DoitCommand, args: list[str]) -> int:
        complain([f"{name}: not a command of lorabuild: {REFUSED[name]}"])
        return UsageError.exit_code

    return type(name.title().replace("-", ""), (DoitCommand,), {"name": name, "parse_execute": parse_execute})


# By class name, what a repository's pyproject.toml registers with doit: `plan = "lorabuild.graph:Plan"`.
COMMANDS = {
    **{"run": Run, "clean": Clean, "forget": Forget, "list": List},
    **{name: _verb(name) for name in REPOSITORY_VERBS},
    **{name: _refused(name) for name in REFUSED},
}


def main(args: Sequence[str], root: Path) -> int:
    """What `lorabuild` does with a verb: the same as `doit`, from any folder of the repository."""
    os.chdir(root)
    loader = ModuleTaskLoader({"task_lorabuild": task_lorabuild, "DOIT_CONFIG": DOIT_CONFIG})
    Run.said_as = "lorabuild build"
    here = {"COMMAND": {name: f"lorabuild.graph:{command.__name__}" for name, command in COMMANDS.items()}}
    return DoitMain(loader, config_filenames=(), extra_config=here).run(list(args))
