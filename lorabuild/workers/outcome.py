"""What a build says at its end of jobs that failed, were stopped, or could not be begun."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path


def not_run(selected: Iterable[str], needs: Callable[[str], Iterable[str]], done: Collection[str]) -> set[str]:
    """What of `selected`, and of all that it needs, is not among `done`."""
    found: set[str] = set()
    pending = list(selected)
    while pending:
        if (name := pending.pop()) not in found:
            found.add(name)
            pending += needs(name)
    return found - set(done)


def failure_lines(failures: Mapping[str, str], logs: Mapping[str, Path], root: Path) -> Iterator[str]:
    """A line a failed job: what to mend, and where its output is, if it came so far as to have some."""
    for name, message in sorted(failures.items()):
        yield f"failed: {name}: {message}" + (f" (log: {logs[name].relative_to(root)})" if name in logs else "")


def interrupted_line(kept: Mapping[str, str], elsewhere: Mapping[str, str], done: str) -> str:
    """What an interrupted build leaves behind, and what goes on without it."""
    states = [f"{name} at {what}" for name, what in sorted(kept.items()) if what]
    said = f"; kept: {', '.join(states)}" if states else ""
    jobs = [f"{name} ({where})" for name, where in sorted(elsewhere.items())]
    said += f"; under way elsewhere: {', '.join(jobs)}" if jobs else ""
    return f"interrupted after {done}{said}; `doit` goes on from there"
