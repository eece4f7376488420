"""Run jobs on this machine: the warm workers of the pool behind the four calls of an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lorabuild.executors.protocol import LAST, Event, Resources, Status
from lorabuild.files import tail
from lorabuild.workers.pool import Pool

TAIL_BYTES = 1 << 14


@dataclass
class _Running:
    spec: Mapping[str, Any]
    place: ExitStack = field(default_factory=ExitStack)  # holds the slot
    events: Iterator[dict[str, Any]] | None = None


class Local:
    """A job's handle is its name: nobody else polls it. `spec["slot"]`, "gpu" or "cpu", is what it waits for.

    A poll waits for the job's slot, and after that for its next event: what was told before is taken as noted, so that
    the worker goes on. It raises what the pool raises.
    """

    def __init__(self, pool: Pool, urgency: Callable[[str], float] = lambda name: 0.0):
        """`urgency`, by a job's name: of those that wait the largest goes first."""
        self._pool = pool
        self._urgency = urgency
        self._jobs: dict[str, _Running] = {}

    def submit(self, spec: Mapping[str, Any], resources: Resources) -> str:
        self._jobs[spec["name"]] = _Running(spec)
        return spec["name"]

    def poll(self, handle: str) -> Status:
        job = self._jobs[handle]
        if job.events is None:
            return Status("running", self._begin(job))
        event = next(job.events)
        if event["event"] not in LAST:
            return Status("running", [event])
        self.cancel(handle)
        return Status("ended", [event])

    def cancel(self, handle: str) -> None:
        job = self._jobs.pop(handle, None)
        if job:
            with job.place:
                if job.events:
                    job.events.close()  # type: ignore[attr-defined]  # a generator

    def logs(self, handle: str) -> str:
        log = self._pool.logs.get(handle)
        return tail(log, TAIL_BYTES) if log else ""

    def _begin(self, job: _Running) -> list[Event]:
        """Take a slot as soon as there is one; what is to be said of it."""
        options = job.spec["options"]
        wanted = options.get("processes", 1)
        slots, urgency = self._pool.slots, partial(self._urgency, job.spec["name"])
        place = job.place.enter_context(slots.place(job.spec["slot"], wanted, urgency))
        device = "cuda" if place.device else "cpu"
        spec = {**job.spec, "options": {**options, "processes": place.processes, "device": device}}
        job.events = self._pool.events(spec, place)
        if place.processes == wanted:
            return []
        said = f"recipe.processes: {wanted}, but there is room for {place.processes} ([slots] gpu, or devices)"
        return [{"event": "warn", "text": f"{said}: {place.processes} at work"}]
