"""Ctrl-C and SIGTERM: once, and a build keeps what it has and stops; twice, and it stops at once."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

EXIT_CODE = 130
GRACE_SECONDS = 30.0  # for one micro-batch and the writing of a state; what takes longer goes on from the state before
SIGNALS = ("SIGINT", "SIGTERM")


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
def keyboard_interrupts() -> Iterator[None]:
    """Within the block SIGTERM raises KeyboardInterrupt, as Ctrl-C does: in a command that has nothing to save."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled_by(interrupt):
        yield


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

    with _handled_by(handle):
        threading.Thread(target=_stop, args=(signals, build), daemon=True).start()
        try:
            yield heard
        finally:
            signals.put(0)


def _stop(signals: queue.SimpleQueue[int], build: Build) -> None:
    if not signals.get():
        return
    build.stop()
    _within_a_second(
        lambda: build.say("stopping: a training keeps its state and ends; once more ends everything at once")
    )
    try:
        again = signals.get(timeout=GRACE_SECONDS)
    except queue.Empty:
        _within_a_second(lambda: build.say(f"not all jobs have stopped within {GRACE_SECONDS:.0f} s: they are ended"))
        again = signal.SIGTERM
    if again:
        build.kill()
        _within_a_second(build.close)
        os._exit(EXIT_CODE)  # no thread is waited for: files are whole at any moment


def _within_a_second(show: Callable[[], None]) -> None:
    """Show something, and wait no longer for it: the output may be a pipe that nobody reads."""
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    thread.join(1)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Both signals go to `handler`. One that is ignored stays so, as under `nohup` and in a shell's background."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say who handles them
        return
    numbers = [getattr(signal, name) for name in SIGNALS]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, old in before.items():
            if old is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
