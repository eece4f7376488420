"""Wait for a job of an executor: pass on what it reports, and tell how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorabuild.errors import InputChanged, Interrupted, JobError
from lorabuild.executors.protocol import Event, Executor, Status, ending


def attend(
    executor: Executor,
    handle: str,
    hear: Callable[[Event], None],
    began: Callable[[], None],
    looked: Callable[[Status], None] = lambda status: None,
    pause: float = 0.0,
) -> Event | None:
    """The event that the job ended with; None if it is lost.

    `hear` is told of all other events, `began` once it runs, `looked` after each poll. What they raise is raised here.
    `pause`: seconds between two polls of which the first had nothing to tell, at least.
    """
    running = False
    while True:
        asked = time.monotonic()
        status = executor.poll(handle)
        last = ending(status.events)
        for event in status.events:
            if event is not last:
                hear(event)
        if not running and (last or status.state == "running"):
            began()
            running = True
        looked(status)
        if last or status.state in ("ended", "lost"):
            return last
        if not status.events and (rest := pause - (time.monotonic() - asked)) > 0:
            time.sleep(rest)


def result(last: Event) -> Event:
    """What a last event means: a result, {"pieces", "notes", "made_with"}, or an exception: JobError, InputChanged,
    Interrupted."""
    match last["event"]:
        case "changed":
            raise InputChanged(Path(last["path"]))
        case "failed":
            raise JobError(*last["lines"])
        case "crashed":
            raise JobError(last["message"])
        case "stopped":
            raise Interrupted(last["kept"])
    return last


def told_by(event: Event, progress: Callable[[int, int, str], Any], warn: Callable[[str], Any]) -> None:
    """Pass on what is only to be shown."""
    match event["event"]:
        case "progress":
            progress(event["done"], event["total"], event["text"])
        case "warn":
            warn(event["text"])
