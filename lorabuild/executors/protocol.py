"""What an executor is asked to do: four calls, plain data in and plain data out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

# What a worker says, one JSON object a line: {"event": "progress" | "warn" | "saved" | one of LAST, …}.
Event = Mapping[str, Any]
LAST = ("done", "failed", "crashed", "changed", "stopped")  # the event that a job ends with

# How `python -m lorabuild.worker SPEC` ends.
DONE, FAILED = 0, 1  # the last event says more
AGAIN = 75  # EX_TEMPFAIL: told to stop, or the store cannot be reached for long; another try is worth it


@dataclass(frozen=True)
class Resources:
    """What one job takes. None: the executor's own default."""

    gpus: int = 0
    cpus: int = 1
    memory_gb: float | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Status:
    """What is known of a job, as of now.

    `events` are those that came since the last poll of this executor object; one that has not polled the handle before
    gets all from the beginning, as each may be told twice without harm. `ended`: one of LAST has been among the events.
    `lost`: it is over without one (killed, its node gone, out of time): it is worth another try. `text` is for people:
    "PENDING (Priority)", "node gpu3 is gone".
    """

    state: Literal["waiting", "running", "ended", "lost"]
    events: Sequence[Event] = field(default_factory=tuple)
    text: str = ""


class Executor(Protocol):
    """Runs `python -m lorabuild.worker SPEC.json` somewhere. A module of an executor has a function
    `executor(settings: Mapping[str, Any], root: Path) -> Executor`: [executor] of lorabuild.toml, and the repository. It
    opens nothing yet; the extra that it needs is imported by the first call. The methods are called from several threads at once, each job's
    from one. Raises JobError in one line for what no other try would mend: no such partition, no GPU in the cluster."""

    def submit(self, spec: Mapping[str, Any], resources: Resources) -> str:
        """Begin a job, or have it wait for its turn. The handle is a short text that another process can poll later."""

    def poll(self, handle: str) -> Status:
        """What became of it. May wait up to a second or so; who asks does not pause between two polls.

        A handle that nobody knows any more is `lost`.
        """

    def cancel(self, handle: str) -> None:
        """End the job: SIGTERM first where that can be, which lets it keep its state. Nothing if it is over."""

    def logs(self, handle: str) -> str:
        """The last lines of what it wrote beside its events; "" if there are none yet."""


def ending(events: Sequence[Event]) -> Event | None:
    """The event that a job ended with, if it is among these."""
    return next((event for event in events if event.get("event") in LAST), None)
