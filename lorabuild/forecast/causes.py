"""Follow a stale job to what made it so: from job to job, down to the value, its file and its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabuild.engine import Engine
from lorabuild.forecast.outlook import Outlook, outlooks
from lorabuild.history import Past, failure, history, job_log, last_success
from lorabuild.manifest import load
from lorabuild.manifest.whence import Spot, Whence
from lorabuild.reasons import Reason
from lorabuild.stage import Job

ALL = 1000  # files and blocks that are spelled out: who asks why wants them all


@dataclass(frozen=True)
class Cause:
    """A reason, and where the value stands now. `default`: nobody wrote it."""

    reason: Reason
    spot: Spot | None = None
    default: bool = False

    def __str__(self) -> str:
        place = f" ({self.spot[0]}:{self.spot[1]})" if self.spot else " (the default)" if self.default else ""
        return f"{self.reason.text}{place}"


@dataclass(frozen=True)
class Link:
    """A job of the chain: its own causes, the jobs that it is stale because of, and what the run logs tell of it."""

    job: str
    event: str
    causes: tuple[Cause, ...]
    because: tuple[str, ...]
    failed: Past | None  # how it failed, if it did when it was run last
    log: Path | None  # what it printed then
    last: Past | None  # its last success


def chain(engine: Engine, names: Sequence[str]) -> list[Link]:
    """The jobs `names`, then what made them stale, down to the causes; what is fresh only if it was asked for.

    Of several jobs the stale ones alone, if there are any.
    """
    found = outlooks(engine, names, few=ALL)
    pasts = history(engine.root / ".lorabuild" / "runs")
    whence = Whence(load(engine.root, engine.state))
    stale = [name for name in names if found[name].event != "fresh"]

    def link(name: str) -> Link:
        outlook, past = found[name], pasts.get(name, ())
        causes = tuple(_cause(outlook.job, reason, whence) for reason in outlook.reasons)
        failed = failure(past)
        log = job_log(engine.root / ".lorabuild" / "logs", failed) if failed else None
        return Link(name, outlook.event, causes, _because(outlook), failed, log, last_success(past))

    return [link(name) for name in _reached(stale or names, found)]


def _because(outlook: Outlook) -> tuple[str, ...]:
    """The jobs that a job is stale because of: those still to be made, and those that have made something else since."""
    since = [reason.name for reason in outlook.reasons if reason.kind == "input" and reason.name]
    return tuple(dict.fromkeys([*outlook.after, *since]))


def _reached(names: Sequence[str], found: Mapping[str, Outlook]) -> list[str]:
    """`names` and what they are stale because of, each once and before its causes."""
    reached: set[str] = set()

    def visit(name: str) -> None:
        if name not in reached:
            reached.add(name)
            for one in _because(found[name]):
                visit(one)

    for name in names:
        visit(name)
    return [name for name in reversed(found) if name in reached]


def _cause(job: Job, reason: Reason, whence: Whence) -> Cause:
    """A reason with its place, where a file of settings has one."""
    if reason.kind == "base":
        return Cause(reason, whence.base(reason.name))
    if reason.kind in ("input", "file") and reason.inner:
        return Cause(reason, whence.key(job.target, *reason.inner))
    if reason.kind != "key":
        return Cause(reason)
    spot = whence.key(job.target, reason.name, reason.inner)
    return Cause(reason, spot, default=spot is None and not reason.text.endswith("-> unset"))
