"""Show what a build does: a live bar on a terminal, plain lines otherwise; the engine only reports."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TextIO

QUIET_SECONDS = 10.0  # between two progress lines of one job where there is no terminal, at least
QUIET_PART = 0.05  # and this part of the time that it has taken: an hour has some forty lines


class Face(Protocol):
    """What the engine tells. Implementations print; none decides anything."""

    def started(self, job: str, why: Sequence[str]) -> None: ...
    def progress(self, job: str, done: int, total: int, text: str) -> None: ...
    def finished(self, job: str, event: str, seconds: float, why: Sequence[str]) -> None: ...
    def failed(self, job: str, message: str) -> None: ...
    def stopped(self, job: str, kept: str) -> None: ...
    def ended(self, job: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class PlainFace:
    """One line an event, each written whole: fit for logs, pipes and several jobs at once."""

    def __init__(self, out: TextIO | None = None):
        self._out = out or sys.stdout
        self._lock = threading.Lock()
        self._shown: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}  # when a job first told how far it was, and what it told

    def started(self, job: str, why: Sequence[str]) -> None:
        self._shown[job] = time.monotonic()
        self._first.pop(job, None)
        self._print(f"{job} …  ({short(why)})")

    def progress(self, job: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        start, before = self._first.setdefault(job, (now, done))
        if now - self._shown.get(job, now) >= max(QUIET_SECONDS, QUIET_PART * (now - start)):
            self._shown[job] = now
            left = (total - done) * (now - start) / (done - before) if done > before else None
            told = f"  {clock(left)} left" if left else ""
            self._print(f"{job}  {done}/{total}  {text}".rstrip() + told)

    def finished(self, job: str, event: str, seconds: float, why: Sequence[str]) -> None:
        reason = f"  ({short(why)})" if event != "built" else ""
        self._print(f"{job} {event} in {seconds:.1f} s{reason}")

    def failed(self, job: str, message: str) -> None:
        self._print(f"{job} FAILED: {message}")

    def stopped(self, job: str, kept: str) -> None:
        self._print(f"{job} stopped" + (f", {kept} is kept" if kept else ""))

    def ended(self, job: str) -> None:
        """What is no job of the build is over: there is nothing to say of it."""

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}")

    def note(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        pass

    def _print(self, line: str) -> None:
        with self._lock:
            try:
                self._out.write(one_line(line) + "\n")
                self._out.flush()
            except OSError:
                pass  # the terminal was closed: nobody reads, and no job is to fail of it


class TerminalFace(PlainFace):
    """Bars with time left for what runs, above them the same lines as ever. Nothing to do: no bars, rich not imported."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def started(self, job: str, why: Sequence[str]) -> None:
        with self._lock:
            self._bars = self._bars or _bars()
        super().started(job, why)
        self._tasks[job] = self._bars.add_task(job, total=None, job=job, text="")

    def progress(self, job: str, done: int, total: int, text: str) -> None:
        if job in self._tasks:
            self._bars.update(self._tasks[job], completed=done, total=total, text=text)

    def finished(self, job: str, event: str, seconds: float, why: Sequence[str]) -> None:
        self._end(job)
        super().finished(job, event, seconds, why)

    def failed(self, job: str, message: str) -> None:
        self._end(job)
        super().failed(job, message)

    def stopped(self, job: str, kept: str) -> None:
        self._end(job)
        super().stopped(job, kept)

    def ended(self, job: str) -> None:
        self._end(job)

    def close(self) -> None:
        if self._bars:
            self._bars.stop()

    def _end(self, job: str) -> None:
        if job in self._tasks:
            self._bars.remove_task(self._tasks.pop(job))

    def _print(self, line: str) -> None:
        if self._bars is None:
            return super()._print(line)
        with self._lock:
            self._bars.console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)


def _bars() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    job, text = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("job", "text"))
    bars = Progress(job, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text, transient=True)
    bars.start()
    return bars


def open_streams() -> None:
    """Where a stream was closed by who has started us, as by `>&-`, nobody wants to hear."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115


def nobody_reads() -> int:
    """The exit code of a program whose reader has gone, as in `… | head -1`: what a shell shows of SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
    return 128 + 13


def face(out: TextIO | None = None) -> Face:
    """The face for where the output goes: `out`, or standard output with bars if it is a terminal."""
    return TerminalFace() if out is None and sys.stdout.isatty() else PlainFace(out)


SHOWN = ("built", "restored", "published", "failed", "not run")


def summary(counts: Mapping[str, int], seconds: float) -> str:
    """`5 built, 2 restored, 9 fresh in 61.2 s`; only `nothing to do` when all is fresh."""
    parts = [f"{counts[event]} {event}" for event in SHOWN if counts.get(event)]
    if not parts:
        return f"nothing to do: {counts.get('fresh', 0)} jobs are fresh"
    if counts.get("fresh"):
        parts.append(f"{counts['fresh']} fresh")
    return f"{', '.join(parts)} in {seconds:.1f} s"


def clock(seconds: float) -> str:
    """`0:04:30`, `27:00:00`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def one_line(text: str) -> str:
    """`text` as one line of a terminal: a line's end or a control character, in a file's name, say, is shown escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def short(why: Sequence[str]) -> str:
    """The first reasons, on one line."""
    head = "; ".join(why[:3])
    return f"{head}; and {len(why) - 3} more" if len(why) > 3 else head
