"""Hand our jobs to doit, which orders and selects them; the only module that imports doit."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from doit.cmd_base import Command, ModuleTaskLoader
from doit.cmd_clean import Clean as DoitClean
from doit.cmd_clean import opt_clean_dryrun
from doit.cmd_forget import Forget as DoitForget
from doit.cmd_forget import opt_forget_all
from doit.cmd_list import List as DoitList
from doit.cmd_run import Run as DoitRun
from doit.cmdparse import CmdParseError
from doit.dependency import Dependency, JSONCodec, MD5Checker
from doit.doit_cmd import DoitMain
from doit.exceptions import InvalidCommand, TaskFailed, UnmetDependency
from doit.reporter import ZeroReporter

from lorabuild.colours import coloured, paint, terminal
from lorabuild.ending import ended, facts, go_on, table
from lorabuild.engine import Engine
from lorabuild.errors import Interrupted, UsageError, UserError, told
from lorabuild.files import remove_empty
from lorabuild.names import REPORT, REPOSITORY_VERBS
from lorabuild.progress import nobody_reads, open_streams, summary
from lorabuild.session import dependencies, opened, selected, targets
from lorabuild.signals import stopping
from lorabuild.stage import Job
from lorabuild.stages import STAGES
from lorabuild.workers.interrupts import EXIT_CODE, stoppable
from lorabuild.workers.outcome import failure_lines, interrupted_line, not_run


class Memory:
    """doit's database, in memory: staleness is ours, and nothing of doit's is left in the repository."""

    def __init__(self, name: str, codec: Any, module_name: str | None = None):
        self.name = name
        self.rows: dict[str, dict[str, Any]] = {}

    def set(self, task: str, key: str, value: Any) -> None:
        self.rows.setdefault(task, {})[key] = value

    def get(self, task: str, key: str) -> Any:
        return self.rows.get(task, {}).get(key)

    def in_(self, task: str) -> bool:
        return task in self.rows

    def remove(self, task: str) -> None:
        self.rows.pop(task, None)

    def remove_all(self) -> None:
        self.rows.clear()

    def dump(self) -> None:
        pass


class Reporter(ZeroReporter):
    """The engine's face has told all there is to tell of jobs; what is left here are faults of our own."""

    desc = "only what the build itself does not report"

    def initialize(self, tasks: Any, selected_tasks: Any) -> None:
        self.tasks, self.selected, self.done = tasks, selected_tasks, set()

    def add_success(self, task: Any) -> None:
        self.done.add(task.name)

    skip_uptodate = add_success

    def not_run(self, failed: Collection[str]) -> int:
        """How many jobs were neither done nor tried: what failed jobs are needed for, or what comes after a stop."""
        left = not_run(self.selected, lambda name: self.tasks[name].task_dep, {*self.done, *failed})
        return sum(bool(self.tasks[name].actions) for name in left)

    def add_failure(self, task: Any, fail: Any) -> None:
        if not isinstance(fail, TaskFailed | UnmetDependency):
            sys.stderr.write(f"{task.name}: a fault in lorabuild, please report it\n{fail.get_msg()}\n")


MAX_WAITING = 64  # threads that do nothing but wait for a slot

DOIT_CONFIG = {
    "reporter": Reporter,
    "verbosity": 2,
    "par_type": "thread",
    "backend": "json",  # for doit's verbs that we do not replace: their file stays out of sight
    "dep_file": ".lorabuild/doit.json",
}


# tasks

_open = ExitStack()  # what the running command holds
_engine: Engine | None = None
_running: type[_Command] | None = None
_wanted: Container[str] | None = None  # the projects that it names; None: it must see all


def engine() -> Engine:
    """The engine of the running command, opened when doit first asks for tasks."""
    global _engine
    if _engine is None:
        writing, building = (_running.writes, _running.builds) if _running else (False, False)
        _engine = _open.enter_context(opened(Path.cwd(), writing, building, _wanted))
    return _engine


def task_lorabuild() -> Iterator[dict[str, Any]]:
    """Every job as a task `stage:target`, every stage and every project as a group."""
    current = engine()
    for stage in STAGES.values():
        yield {"basename": stage.name, "name": None, "doc": _summary(stage.run)}
    for name, job in current.jobs.items():
        yield {
            "basename": job.stage,
            "name": job.target,
            "uptodate": [_Fresh(current, name)],
            "actions": [(_realise, [current, name])],
            "task_dep": dependencies(job, current.jobs),
            "clean": [(_clean, [name])],
            "io": {"capture": False},
        }
    for project in current.projects:
        yield {
            "basename": project,
            "actions": None,
            "task_dep": targets(current.jobs, current.projects)[project],
            "doc": f"all of {project}",
        }
    yield {
        "basename": REPORT,
        "actions": None,
        "doc": "What plain `doit` builds, then pages of it: build/report/index.html",
    }


class _Fresh:
    """doit calls it when all that the job needs is done. A class: doit takes a plain function's arguments as options."""

    def __init__(self, current: Engine, name: str):
        self.current, self.name = current, name

    def __call__(self, task: Any, values: Any) -> bool:
        return self.current.fresh(self.name)


def _realise(current: Engine, name: str) -> Any:
    try:
        current.realise(name)
    except (UserError, Interrupted) as error:
        return TaskFailed(str(error), report=False)
    return True


def _clean(name: str, dryrun: bool) -> None:
    """Remove what the job published into build/; the store keeps it, so that a build restores it."""
    current = engine()
    for path in current.state.published_by(name):
        if path.is_relative_to(current.root / "build") and path.exists():
            print(f"{'would remove' if dryrun else 'removed'} {path.relative_to(current.root)}")
            if not dryrun:
                path.unlink()
                remove_empty(path.parent, current.root / "build")


def _projects_of(names: Sequence[str]) -> set[str] | None:
    """The projects that targets are of; None where one is of all of them: a stage, or what belongs to a base."""
    jobs = [Job(name, {}, {}, ()) if ":" in name else Job(f"train:{name}", {}, {}, ()) for name in names]
    if {*STAGES, REPORT} & {*names} or any(job.project is None for job in jobs):
        return None
    return {job.project for job in jobs if job.project}


def _summary(function: Any) -> str:
    return (sys.modules[function.__module__].__doc__ or "").strip().splitlines()[0].rstrip(".")


# commands


class _Command:
    """What our commands share: errors in one line, exit codes, doit's database in memory."""

    writes = builds = False

    def parse_execute(self, args: list[str]) -> int:
        global _running, _engine, _wanted
        _running = type(self)
        open_streams()
        try:
            with stopping(), _open:  # also while it is closed: that waits for uploads
                try:
                    return super().parse_execute(args) or 0  # type: ignore[misc]  # the doit command beside us
                finally:
                    print(end="", flush=True)  # who reads it may have gone: better noticed here than when Python ends
        except UserError as error:
            _complain(map(str, error.problems))
            return error.exit_code
        except (CmdParseError, InvalidCommand) as error:
            _complain([" ".join(str(error).partition(" (parsing options")[0].split())])  # the rest is doit's own code
            return UsageError.exit_code
        except BrokenPipeError:
            return nobody_reads()
        except OSError as error:  # what no job is to blame for: a record cannot be written, say
            _complain([told(error, Path.cwd())])
            return 1
        except KeyboardInterrupt:
            _complain(["interrupted: what was finished is kept, a training goes on from its last state"])
            return EXIT_CODE
        finally:
            _engine = _wanted = None

    def execute(self, params: Any, args: list[str]) -> int:
        self.dep_manager = Dependency(Memory, "", checker_cls=MD5Checker, codec_cls=JSONCodec)
        return super().execute(params, args)  # type: ignore[misc]

    @staticmethod
    def jobs_of(names: Sequence[str]) -> list[str]:
        """The jobs that `names` stand for; the default ones if there are none. Raises UsageError with a near miss."""
        return selected(names, engine())


OPT_JSON = {
    "name": "json",
    "short": "",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print what was done as JSON, and nothing else, to stdout (docs/commands.md)",
}


class Run(_Command, DoitRun):
    """`doit`, `doit TARGET …`, `-n 4`, `--continue`, `-a`, `--json`."""

    writes = builds = True
    cmd_options = (*DoitRun.cmd_options, OPT_JSON)
    said_as = "doit"  # what was typed to come here
    _facts: dict[str, Any] | None = None  # what the build did, once it is over
    _on = "doit"  # the command that goes on where this one failed

    def parse_execute(self, args: list[str]) -> int:
        """With --json all that is said goes to stderr. A mistake before anything is begun leaves stdout empty."""
        if "--json" not in args:
            return super().parse_execute(args)
        open_streams()
        out = sys.stdout
        rest = [arg for arg in args if arg != "--json"]  # doit reads options before the targets alone
        with redirect_stdout(sys.stderr):
            code = super().parse_execute(["--json", *rest])
        if self._facts is not None:
            try:
                print(json.dumps(self._facts | {"exit_code": code}, indent=2, ensure_ascii=False), file=out, flush=True)
            except BrokenPipeError:
                return nobody_reads()
        return code

    def execute(self, params: Any, args: list[str]) -> int:
        """With all projects clean, there is no graph to be made."""
        if params["num_process"] < 0:
            raise UsageError(f"-n {params['num_process']}: the number of jobs at once is 1 or more")
        global _wanted
        _wanted = None if params["always"] else _projects_of(args)
        start = time.monotonic()
        current = engine()
        if not args and current.clean and not current.projects:
            return self._end(current, start)
        return super().execute(params, args)

    def _execute(  # type: ignore[override]  # doit passes what the signature names
        self,
        outfile: Any,
        verbosity: int | None = None,
        always: bool = False,
        continue_: bool = False,
        num_process: int = 0,
        single: bool = False,
        pdb: bool = False,
        pos_args: Sequence[str] = (),
    ) -> int:
        current = engine()
        named = [name for name in pos_args if name != REPORT]
        wanted = self.jobs_of(named)
        if not wanted and not current.clean:
            print(f"nothing to build: {self._reason(current, named)}")
            self._facts = facts(current, 0.0)
            _report(current, pos_args)
            return 0
        left_out: dict[str, str] = {}
        if not named and not continue_:  # a project that waits for its images keeps no other one waiting
            wanted, left_out = _filled(current, wanted)
        if not continue_:  # then the others are built, and its own jobs tell what is wrong
            current.check_sources(wanted)
        if not named or REPORT in pos_args:
            self.sel_tasks = wanted
        if always:
            current.anew = frozenset(wanted)
            self._announce(current, wanted)
        current.keep_going = continue_
        for name, message in left_out.items():
            current.leave_out(name, message)
        if num_process:
            current.pool.slots.limit(num_process)
        reporter, start = Reporter(outfile, {}), time.monotonic()
        with stoppable(_Stopped(current)) as heard:
            threads = _threads(num_process, current)
            code = super()._execute(
                outfile, verbosity, False, continue_, reporter, threads, "thread", single=single, pdb=pdb
            )
        code = code or int(bool(left_out))
        if code:
            current.counts["not run"] = reporter.not_run(current.failures)
        self._on = go_on(self.said_as, pos_args, num_process, continue_)
        if heard.signalled:
            if current.sharing:
                current.sharing.leave()  # a signal of the last moment may not have come to _Stopped yet
            current.face.close()
            seconds = time.monotonic() - start
            said = summary(current.counts, seconds)
            _complain([*_failures(current), interrupted_line(current.interrupted, said)])
            self._facts = facts(current, seconds)
            return EXIT_CODE
        return self._end(current, start, code, pos_args)

    def _end(self, current: Engine, start: float, code: int = 0, names: Sequence[str] = ()) -> int:
        """Put in order what the run leaves, and say what it did."""
        current.face.close()
        removed = current.tidy()
        for path in removed:
            print(f"removed {path.relative_to(current.root)}: no longer wanted")
        current.settle(current.made_by)
        if not names:
            current.counts["fresh"] += len(
                {job for jobs in current.clean.values() for job in jobs} - current.jobs.keys()
            )
        seconds = time.monotonic() - start
        if terminal():
            size = shutil.get_terminal_size()
            for line in table(ended(current), size.columns, size.lines, coloured()):
                print(line)
        print(summary(current.counts, seconds) if not code or current.failures else "stopped")
        for line in _failures(current):
            print(paint(line, "red") if coloured() else line)
        if current.failures:
            print(f"once that is mended, `{self._on}` goes on from here")
        self._facts = facts(current, seconds, removed)
        _report(current, names)
        return 1 if code else 0

    @staticmethod
    def _reason(current: Engine, names: Sequence[str]) -> str:
        """Why there is no job."""
        if not current.projects:
            return "no projects/**/lora.toml here (`lorabuild new NAME` makes one)"
        if not names:
            return "no project has a job of the stages in [build] default"
        return f"without [resize] and [chop], nothing is made of a project that starts from a file: {', '.join(names)}"

    @staticmethod
    def _announce(current: Engine, wanted: Sequence[str]) -> None:
        seconds = current.seconds_of(wanted)
        known = [one for one in seconds if one is not None]
        unknown = f"; {len(seconds) - len(known)} were never built here" if len(known) < len(seconds) else ""
        print(f"building {len(wanted)} jobs anew: about {sum(known):.0f} s by their last builds{unknown}")


@dataclass
class _Stopped:
    """The running build, as interrupts stop it."""

    current: Engine

    def stop(self) -> None:
        if self.current.sharing:
            self.current.sharing.leave()
        self.current.pool.stop()

    def kill(self) -> None:
        self.current.pool.close()

    def close(self) -> None:
        self.current.face.close()

    def say(self, text: str) -> None:
        self.current.face.warn(text)


def _filled(current: Engine, wanted: list[str]) -> tuple[list[str], dict[str, str]]:
    """`wanted` without what needs images that are not there yet, and what is said of those; all, if nothing else is left."""
    unfilled = current.unfilled(wanted)
    if unfilled:
        from lorabuild.forecast.outlook import in_order

        if rest := [name for name in wanted if not unfilled.keys() & in_order([name], current.jobs)]:
            return rest, unfilled
    return wanted, {}


def _report(current: Engine, names: Sequence[str]) -> None:
    """Bring the pages up to date, if they are asked for; also those of what failed. Where nothing was to do, they are."""
    if REPORT not in (names or current.default):
        return
    folder = current.root / "build" / REPORT
    if not names and not current.projects:
        pages = {f"{name}.html" for name in ("index", *current.clean)}
        if pages == {path.name for path in folder.glob("*.html")}:
            return
    face = import_module("lorabuild.verbs.report")  # by name: faces are above us
    print(face.said(face.refresh(current.root)))


def _threads(jobs: int, current: Engine) -> int:
    """For doit: as many as jobs may run, and more for those that wait for a GPU and should not keep others waiting."""
    heavy = sum(current.stages[job.stage].slot == "gpu" for job in current.jobs.values())
    return jobs + min(heavy, MAX_WAITING) if jobs > 1 else jobs


def _failures(current: Engine) -> Iterable[str]:
    return failure_lines(current.failures, current.pool.logs, current.root)


class Clean(_Command, DoitClean):
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
            _clean(name, dryrun)


class Forget(_Command, DoitForget):
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


class List(_Command, DoitList):
    """`doit list [--all] [TARGET …]`: the stages and projects, or every job."""

    def execute(self, params: Any, args: list[str]) -> int:
        """doit's own word on a name that it does not know has no near miss."""
        self.jobs_of(args)
        return super().execute(params, args)


def _verb(name: str) -> type[Command]:
    """A verb of ours as a command of doit: `doit plan` is `lorabuild plan`. It opens the repository by itself."""

    def parse_execute(self: Command, args: list[str]) -> int:
        return import_module("lorabuild.cli").run_verb(name, _typed(name, args))  # by name: faces are above us

    return type(name.capitalize(), (Command,), {"name": name, "parse_execute": parse_execute})


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


def _refused(name: str) -> type[Command]:
    def parse_execute(self: Command, args: list[str]) -> int:
        _complain([f"{name}: not a command of lorabuild: {REFUSED[name]}"])
        return UsageError.exit_code

    return type(name.title().replace("-", ""), (Command,), {"name": name, "parse_execute": parse_execute})


# By class name, what a repository's pyproject.toml registers with doit: `plan = "lorabuild.graph:Plan"`.
COMMANDS = {
    **{"run": Run, "clean": Clean, "forget": Forget, "list": List},
    **{name: _verb(name) for name in REPOSITORY_VERBS},
    **{name: _refused(name) for name in REFUSED},
}
globals().update({command.__name__: command for command in COMMANDS.values()})


def main(args: Sequence[str], root: Path) -> int:
    """What `lorabuild` does with a verb: the same as `doit`, from any folder of the repository."""
    import os

    os.chdir(root)
    loader = ModuleTaskLoader({"task_lorabuild": task_lorabuild, "DOIT_CONFIG": DOIT_CONFIG})
    Run.said_as = "lorabuild build"
    here = {"COMMAND": {name: f"lorabuild.graph:{command.__name__}" for name, command in COMMANDS.items()}}
    return DoitMain(loader, config_filenames=(), extra_config=here).run(list(args))


def _complain(lines: Any) -> None:
    for line in lines:
        sys.stderr.write(f"{line}\n")


__all__ = ["COMMANDS", "DOIT_CONFIG", "Clean", "Forget", "List", "Run", "main", "task_lorabuild"]
