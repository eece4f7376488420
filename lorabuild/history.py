"""Read the run logs that are kept: what became of each job, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

CLOCKS_APART = 1.0  # seconds: a file system's clock and ours


@dataclass(frozen=True)
class Past:
    """A line of a run log. `when` is the start of that run, UTC; `run` is the log's file."""

    job: str
    event: str
    seconds: float
    why: tuple[str, ...]
    when: str
    run: Path


def history(runs: Path) -> dict[str, list[Past]]:
    """What became of each job, the newest first. A line that is cut off (a kill) or not ours is passed over."""
    found: dict[str, list[Past]] = {}
    for path in sorted(runs.glob("*T*Z.jsonl"), reverse=True):
        for past in _lines(path):
            found.setdefault(past.job, []).append(past)
    return found


def last_success(pasts: Sequence[Past]) -> Past | None:
    """When a job was built last, or if no log tells of that, restored or published."""
    built = (past for past in pasts if past.event == "built")
    return next(built, next((past for past in pasts if past.event != "failed"), None))


def failure(pasts: Sequence[Past]) -> Past | None:
    """How a job failed, if that is the last that is known of it."""
    return pasts[0] if pasts and pasts[0].event == "failed" else None


def job_log(logs: Path, past: Past) -> Path | None:
    """What the job printed in that run or since; None if it did not come so far."""
    path = logs / f"{past.job.replace(':', '-')}.log"
    began = datetime.strptime(past.run.name, "%Y-%m-%dT%H-%M-%S.%fZ.jsonl").replace(tzinfo=UTC)
    try:
        return path if path.stat().st_mtime >= began.timestamp() - CLOCKS_APART else None
    except OSError:
        return None


def _lines(path: Path) -> Iterator[Past]:
    """The lines of one run, the last one first."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # pruned by a build since it was listed
        return
    for line in reversed(lines):
        try:
            one = json.loads(line)
            yield Past(one["job"], one["event"], float(one["seconds"]), tuple(one["why"]), _when(path), path)
        except (ValueError, KeyError, TypeError):
            continue


def _when(path: Path) -> str:
    """`2026-11-21T12-33-00.123456Z.jsonl` -> `2026-11-21 12:33:00 UTC`."""
    day, _, time = path.name.partition("T")
    return f"{day} {time[:8].replace('-', ':')} UTC"
