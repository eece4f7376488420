"""A worker's end of the line to its driver: jobs and answers in, events out, as lines of JSON."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
from collections.abc import Mapping
from typing import Any


class Channel:
    """On saved descriptors: libraries print to 1 and 2 as they like.

    A thread reads, so that the end of the driver, which closes its end of the line, ends this process in the middle of
    a job, and so that a job can be told to stop.
    """

    def __init__(self) -> None:
        self._source, self._events = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
        with open(os.devnull) as null:
            os.dup2(null.fileno(), 0)
        os.dup2(2, 1)
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._stop = self._asks = False
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self) -> Any:
        """The next job, or the answer to what was sent last."""
        return self._inbox.get()

    def send(self, event: Mapping[str, Any]) -> None:
        try:
            self._events.write(json.dumps(event) + "\n")
            self._events.flush()
        except BrokenPipeError:
            end()

    def stopping(self) -> bool:
        """Whether the driver wants the job to stop. Who has asked once is given the time to save what it has."""
        self._asks = True
        return self._stop

    def job_begins(self) -> None:
        self._asks = False

    def _read(self) -> None:
        try:
            for line in self._source:
                message = json.loads(line)
                if "stop" not in message:
                    self._inbox.put(message)
                elif not self._asks:
                    break
                else:
                    self._stop = True
        finally:  # the driver is gone, or has no more use for this process: what it keeps is on disk
            end()


def end() -> None:
    """End this process at once, and all that it has started."""
    try:
        if os.getpgrp() == os.getpid():  # the driver gave it a group of its own
            os.killpg(0, signal.SIGKILL)
    except AttributeError:
        pass  # no process groups here (Windows)
    os._exit(0)
