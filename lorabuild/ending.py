"""What a build tells at its end: what became of each job that did something, as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabuild.colours import EVENTS, paint
from lorabuild.engine import Engine
from lorabuild.progress import megabytes
from lorabuild.publish import published_path
from lorabuild.sampling.held_out import lines, read

HEAD = ("project", "stage", "result", "time", "size")
NUMBERS = (3, 4)
SHORTEST = 8  # letters of a project's name that stay in a narrow terminal
BESIDE = 5  # lines of a terminal that are for what stands above and below the table


@dataclass(frozen=True)
class Ended:
    """A job that did something in this run, or several of one project. `bytes`: what it has published, else stored."""

    target: str  # "ember", "ember@mini", or a base
    stage: str
    event: str
    seconds: float
    bytes: int | None


def ended(current: Engine) -> list[Ended]:
    """In the order in which they came to their end."""
    found = [
        Ended(*_name(line["job"]), line["event"], line["seconds"], _bytes(current, line["job"]))
        for line in current.log.lines
    ]
    return found + [Ended(*_name(job), "stopped", 0.0, None) for job in sorted(current.interrupted)]


def facts(current: Engine, seconds: float, removed: Iterable[Path] = ()) -> dict[str, Any]:
    """The object of `lorabuild build --json`, but for the exit code."""
    jobs: list[dict[str, Any]] = [
        {
            "job": line["job"],
            "event": line["event"],
            "seconds": line["seconds"],
            "why": line["why"],
            "bytes": _bytes(current, line["job"]),
            "log": _log(current, line["job"]) if line["event"] == "failed" else None,
            **({"held_out": told} if (told := _measured(current, line["job"], line["event"])) else {}),
        }
        for line in current.log.lines
    ]
    left = {"stopped": current.interrupted, "elsewhere": current.elsewhere}
    jobs += [
        {"job": job, "event": event, "seconds": None, "why": [what] if what else [], "bytes": None, "log": None}
        for event, found in left.items()
        for job, what in sorted(found.items())
    ]
    return {
        "jobs": jobs,
        "counts": {event: count for event, count in current.counts.items() if count},
        "removed": [str(path.relative_to(current.root)) for path in removed],
        "seconds": round(seconds, 3),
    }


def held_out(current: Engine) -> list[str]:
    """A line for each project whose held-out loss was measured in this run, or came back from the store."""
    found = [(line["job"], _measured(current, line["job"], line["event"])) for line in current.log.lines]
    return [said for job, told in found if told for said in lines(_name(job)[0], told)]


def held_out_of(current: Engine, project: str) -> dict[str, Any] | None:
    """What stands in build/ of a project's held-out loss; None where it is not drawn, or not measured."""
    job = current.jobs.get(f"samples:{project}")
    path = published_path(current.root, job, "samples.json") if job else None
    return read(path) if job and path and path in current.state.published_by(job.name) else None


def table(jobs: Sequence[Ended], width: int, height: int, colours: bool) -> list[str]:
    """Lines of at most `width` columns: a job each, or a project each where a screen of `height` lines has no place for all.

    None for a single job: its own line has told all.
    """
    if len(jobs) < 2:
        return []
    rows = [_cells(job.target, job.stage, job.event, job.seconds, job.bytes) for job in jobs]
    if len(rows) > max(height - BESIDE, SHORTEST):
        rows = _by_project(jobs)
    return _fitted([HEAD, *rows], width, colours)


def _by_project(jobs: Sequence[Ended]) -> list[tuple[str, ...]]:
    """`ember  6 stages  4 built, 2 restored`"""
    rows = []
    for target in dict.fromkeys(job.target for job in jobs):
        own = [job for job in jobs if job.target == target]
        counts = Counter(job.event for job in own)
        sizes = [job.bytes for job in own if job.bytes is not None]
        stages = own[0].stage if len(own) == 1 else f"{len(own)} stages"
        said = ", ".join(f"{count} {event}" for event, count in counts.items())
        rows.append(_cells(target, stages, said, sum(job.seconds for job in own), sum(sizes) if sizes else None))
    return rows


def _cells(target: str, stage: str, event: str, seconds: float, size: int | None) -> tuple[str, ...]:
    return target, stage, event, f"{seconds:.1f} s", "" if size is None else megabytes(size)


def _fitted(rows: Sequence[Sequence[str]], width: int, colours: bool) -> list[str]:
    """Aligned lines. Where they are too long, names are shortened first; then sizes, times and stages are left out."""
    for columns in ((0, 1, 2, 3, 4), (0, 1, 2, 3), (0, 1, 2), (0, 2)):
        widths = {number: max(len(row[number]) for row in rows) for number in columns}
        free = width - sum(widths.values()) + widths[0] - 2 * (len(columns) - 1)
        if free >= min(SHORTEST, widths[0]):
            break
    widths[0] = max(min(widths[0], free), 1)
    lines = []
    for row in rows:
        cells = []
        for number in columns:
            text = _shortened(row[number], widths[number])
            padded = text.rjust(widths[number]) if number in NUMBERS else text.ljust(widths[number])
            colour = "red" if "failed" in text else EVENTS.get(text)
            cells.append(paint(padded, colour) if colours and number == 2 and colour else padded)
        lines.append("  ".join(cells).rstrip())
    return lines


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _name(job: str) -> tuple[str, str]:
    stage, _, target = job.partition(":")
    return target, stage


def _bytes(current: Engine, job: str) -> int | None:
    """Of its files in build/; of what stands in the store alone, there. None if nothing came out."""
    found = current.assessed.get(job)
    if found is None or found.missing or job in current.failures:
        return None
    sizes = [path.stat().st_size for path in current.state.published_by(job) if path.is_file()]
    return sum(sizes) if sizes else sum(output.size for output in found.outputs.values())


def _measured(current: Engine, job: str, event: str) -> dict[str, Any] | None:
    stage, _, target = job.partition(":")
    return held_out_of(current, target) if stage == "samples" and event != "failed" else None


def _log(current: Engine, job: str) -> str | None:
    return str(current.pool.logs[job].relative_to(current.root)) if job in current.pool.logs else None


def go_on(said_as: str, names: Sequence[str], jobs: int, keep_going: bool) -> str:
    """The command that goes on where jobs have failed."""
    import shlex

    options = [*(["-n", str(jobs)] if jobs else []), *(["--continue"] if keep_going else [])]
    return shlex.join([*said_as.split(), *options, *names])
