"""Show what a build does: a live bar on a terminal, plain lines otherwise; the engine only reports."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TextIO

from lorabuild.colours import EVENTS, coloured, paint, terminal

NARROW, WIDE = (
    60,
    100,
)  # columns of a terminal: below, a bar has no place; from there on it may be longLONG, SHORT = 40, 16  # columns of a bar
BESIDE = 38  # columns of what stands beside bar and text: a job's name, counts, the time left, gaps

LONG, SHORT = 40, 16  # columns of a bar
BESIDE = 38  # columns of what stands beside bar and text: a job's name, counts, the time left, gaps
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
        self._coloured = coloured(self._out)
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
        self._print(f"{job} ", (event, EVENTS.get(event, "")), f" in {seconds:.1f} s{reason}")

    def failed(self, job: str, message: str) -> None:
        self._print(f"{job} ", ("FAILED", "red"), f": {message}")

    def stopped(self, job: str, kept: str) -> None:
        self._print(f"{job} ", ("stopped", "yellow"), f", {kept} is kept" if kept else "")

    def ended(self, job: str) -> None:
        """What is no job of the build is over: there is nothing to say of it."""

    def warn(self, text: str) -> None:
        self._print(("warning:", "yellow"), f" {text}")

    def note(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        pass

    def _line(self, parts: Sequence[str | tuple[str, str]]) -> str:
        """One line of text; a part with a colour is painted where the output shows it."""
        pairs = [(part, "") if isinstance(part, str) else part for part in parts]
        return "".join(
            paint(one_line(text), colour) if colour and self._coloured else one_line(text) for text, colour in pairs
        )

    def _print(self, *parts: str | tuple[str, str]) -> None:
        with self._lock:
            try:
                self._out.write(self._line(parts) + "\n")
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

    def _print(self, *parts: str | tuple[str, str]) -> None:
        if self._bars is None:
            return super()._print(*parts)
        from rich.text import Text

        with self._lock:
            self._bars.console.print(Text.from_ansi(self._line(parts)), soft_wrap=True)


def _bars() -> Any:
    """rich's bars, in one line a job however narrow the terminal is: first the text goes, then the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    console = Console()

    def field(name: str, width: int | None = None) -> TextColumn:
        column = Column(no_wrap=True, overflow="ellipsis", max_width=width)
        return TextColumn(f"{{task.fields[{name}]}}", markup=False, table_column=column)

    columns: list[Any] = [field("job"), MofNCompleteColumn(), TimeRemainingColumn()]
    if console.width >= NARROW:
        bar = LONG if console.width >= WIDE else SHORT
        columns.insert(1, BarColumn(bar_width=bar))
        columns.append(field("text", max(console.width - bar - BESIDE, SHORT)))
    bars = Progress(*columns, console=console, transient=True)
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
    """The face for where the output goes: `out`, or standard output with bars if it is a terminal that can show them."""
    return TerminalFace() if out is None and terminal() else PlainFace(out)


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


def megabytes(size: float) -> str:
    """A file's size for people: `112.4 MB`; of a small one `21.5 kB`."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def one_line(text: str) -> str:
    """`text` as one line of a terminal: a line's end or a control character, in a file's name, say, is shown escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def short(why: Sequence[str]) -> str:
    """The first reasons, on one line."""
    head = "; ".join(why[:3])
    return f"{head}; and {len(why) - 3} more" if len(why) > 3 else head
