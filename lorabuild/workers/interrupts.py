"""Ctrl-C, SIGTERM and SIGHUP: once, and a build keeps what it has and stops; twice, and it stops at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from lorabuild.signals import SIGNALS, handled_by, written_to

EXIT_CODE = 130
ENDED = 0  # no signal has this number: the socket is closed, as the build has come to its end
GRACE_SECONDS = 30.0  # for one micro-batch and the writing of a state; what takes longer goes on from the state before


class Build(Protocol):
    """What is stopped."""

    def stop(self) -> None:
        """Begin nothing any more, and let what runs keep what it has."""

    def kill(self, asked: bool) -> None:
        """End everything at once. `asked`: by a second signal, not because it takes too long."""

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

    A thread does the work: a handler runs between any two instructions of the main thread, which may hold whatever lock
    the work needs. Python itself writes a signal's number to the thread's socket, at once and whatever the main thread is
    at; a queue that the handler puts it into would lose one in some thousand (docs/log.md).
    """
    heard = Heard()
    inbox, outbox = socket.socketpair()

    def handle(number: int, frame: FrameType | None) -> None:
        heard.signalled = True

    with outbox, handled_by(handle), written_to(outbox):
        threading.Thread(target=_stop, args=(inbox, build), daemon=True).start()
        yield heard


def _stop(inbox: socket.socket, build: Build) -> None:
    with inbox:
        if _next(inbox, None) == ENDED:
            return
        build.stop()
        _within_a_second(
            lambda: build.say("stopping: a training keeps its state and ends; once more ends everything at once")
        )
        again = _next(inbox, GRACE_SECONDS, passing_over=[getattr(signal, "SIGHUP", None)])
        if again is None:
            said = f"not all jobs have stopped within {GRACE_SECONDS:.0f} s: they are ended"
            _within_a_second(lambda: build.say(said))
        if again != ENDED:
            build.kill(again is not None)
            _within_a_second(build.close)
            os._exit(EXIT_CODE)  # no thread is waited for: files are whole at any moment


def _next(inbox: socket.socket, seconds: float | None, passing_over: Container[int | None] = ()) -> int | None:
    """The next signal within `seconds`; None if none came, ENDED once the build is over.

    A terminal that closes sends SIGHUP twice, which may be passed over: that is no second wish.
    """
    until = None if seconds is None else time.monotonic() + seconds
    while until is None or time.monotonic() < until:
        inbox.settimeout(None if until is None else max(until - time.monotonic(), 0.001))
        try:
            number = int.from_bytes(inbox.recv(1))
        except TimeoutError:
            return None
        if number == ENDED or (number in SIGNALS and number not in passing_over):
            return number
    return None


def _within_a_second(show: Callable[[], None]) -> None:
    """Show something, and wait no longer for it: the output may be a pipe that nobody reads."""
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    thread.join(1)
