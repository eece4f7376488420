"""Ctrl-C, SIGTERM and SIGHUP: once, and a build keeps what it has and stops; twice, and it stops at once."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from lorabuild.signals import handled_by

EXIT_CODE = 130
ENDED = 0  # no signal has this number: the build has come to its end
GRACE_SECONDS = 30.0  # for one micro-batch and the writing of a state; what takes longer goes on from the state before


class Build(Protocol):
    """What is stopped."""

    def stop(self) -> None:
        """Begin nothing any more, and let what runs keep what it has."""

    def kill(self) -> None:
        """End everything at once."""

    def say(self, text: str) -> None: ...

    def close(self) -> None:
        """Leave the terminal as it was."""


@dataclass
class Heard:
    """Whether a signal came."""

    signalled: bool = False


@contextmanager
def stoppable(build: Build) -> Iterator[Heard]:
    """Within the block the first signal stops `build`; the second one, or GRACE_SECONDS, ends the process, exit code 130.

    The handler itself only passes the number on: it runs between any two instructions of the main thread, which may
    hold whatever lock the work needs. A thread does the work.
    """
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # whose put is safe in a handler
    heard = Heard()

    def handle(number: int, frame: FrameType | None) -> None:
        heard.signalled = True
        signals.put(number)

    with handled_by(handle):
        threading.Thread(target=_stop, args=(signals, build), daemon=True).start()
        try:
            yield heard
        finally:
            signals.put(ENDED)


def _stop(signals: queue.SimpleQueue[int], build: Build) -> None:
    if signals.get() == ENDED:
        return
    build.stop()
    _within_a_second(
        lambda: build.say("stopping: a training keeps its state and ends; once more ends everything at once")
    )
    again = _next(signals, GRACE_SECONDS)
    if again is None:
        _within_a_second(lambda: build.say(f"not all jobs have stopped within {GRACE_SECONDS:.0f} s: they are ended"))
    if again != ENDED:
        build.kill()
        _within_a_second(build.close)
        os._exit(EXIT_CODE)  # no thread is waited for: files are whole at any moment


def _next(signals: queue.SimpleQueue[int], seconds: float) -> int | None:
    """The next signal within `seconds`. A terminal that closes sends SIGHUP twice: that is no second wish."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            number = signals.get(timeout=left)
        except queue.Empty:
            return None
        if number != getattr(signal, "SIGHUP", None):
            return number
    return None


def _within_a_second(show: Callable[[], None]) -> None:
    """Show something, and wait no longer for it: the output may be a pipe that nobody reads."""
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    thread.join(1)
