"""`doit`, `doit TARGET …`: build what is stale, and say what was done."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from doit.cmd_run import Run as DoitRun

from lorabuild.colours import coloured, paint, terminal
from lorabuild.ending import ended, facts, go_on, held_out, table
from lorabuild.engine import Engine
from lorabuild.errors import UsageError
from lorabuild.graph.books import Reporter
from lorabuild.graph.command import Command, complain
from lorabuild.graph.tasks import engine, running
from lorabuild.names import REPORT
from lorabuild.progress import nobody_reads, open_streams, summary
from lorabuild.stage import Job
from lorabuild.stages import STAGES
from lorabuild.workers.interrupts import EXIT_CODE, stoppable
from lorabuild.workers.outcome import failure_lines, interrupted_line

MAX_WAITING = 64  # threads that do nothing but wait for a slot

OPT_JSON = {
    "name": "json",
    "short": "",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print what was done as JSON, and nothing else, to stdout (docs/commands.md)",
}


class Run(Command, DoitRun):
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
        running.wanted = None if params["always"] else _projects_of(args)
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
        current.wanted = wanted
        if always:
            current.anew = frozenset(wanted)
            self._announce(current, wanted)
        current.keep_going = continue_
        for name, message in left_out.items():
            current.leave_out(name, message)
        if num_process or current.away:  # of what is elsewhere, [executor] says how much is under way at once
            current.pool.slots.limit(num_process or 1)
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
            complain([*_failures(current), interrupted_line(current.interrupted, current.elsewhere, said)])
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
        for line in held_out(current):
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
        if self.current.away:
            self.current.away.leave()
        self.current.pool.stop()

    def kill(self, asked: bool) -> None:
        self.current.pool.close()
        if asked and self.current.away and (count := self.current.away.cancel()):
            self.current.face.warn(f"cancelled {_jobs(count)} of {self.current.away.kind}")

    def close(self) -> None:
        self.current.face.close()

    def say(self, text: str) -> None:
        away = self.current.away
        if away and away.flying:
            it, goes = ("it", "goes") if away.flying == 1 else ("them", "go")
            text += (
                f"; {_jobs(away.flying)} of {away.kind} {goes} on, `doit` finds {it} again: once more cancels {it}, too"
            )
        self.current.face.warn(text)


def _filled(current: Engine, wanted: list[str]) -> tuple[list[str], dict[str, str]]:
    """`wanted` without what needs images that are not there yet, and what is said of those; all, if nothing else is left."""
    unfilled = current.unfilled(wanted)
    if unfilled:
        from lorabuild.forecast.outlook import in_order

        if rest := [name for name in wanted if not unfilled.keys() & in_order([name], current.jobs)]:
            return rest, unfilled
    return wanted, {}


def _projects_of(names: Sequence[str]) -> set[str] | None:
    """The projects that targets are of; None where one is of all of them: a stage, or what belongs to a base."""
    jobs = [Job(name, {}, {}, ()) if ":" in name else Job(f"train:{name}", {}, {}, ()) for name in names]
    if {*STAGES, REPORT} & {*names} or any(job.project is None for job in jobs):
        return None
    return {job.project for job in jobs if job.project}


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
    if current.away:  # a job that is elsewhere, or waits to go there, keeps its thread
        return max(jobs, 1) + current.away.needs.jobs + min(len(current.jobs), MAX_WAITING)
    heavy = sum(current.stages[job.stage].slot == "gpu" for job in current.jobs.values())
    return jobs + min(heavy, MAX_WAITING) if jobs > 1 else jobs


def _jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


def _failures(current: Engine) -> Iterable[str]:
    return failure_lines(current.failures, current.pool.logs, current.root)
