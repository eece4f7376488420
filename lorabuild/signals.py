"""Let a signal that asks a command to end be an exception, so that it clears away what it was at."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AGAIN_SECONDS = 1.0  # a terminal that closes sends SIGHUP twice: the second would interrupt the clearing away


class Stopped(KeyboardInterrupt):
    """One of SIGNALS came. `exit_code` is what a shell shows of a program that it ended: 130, 143, 129."""

    def __init__(self, number: int):
        self.exit_code = 128 + number
        super().__init__(signal.Signals(number).name)


@contextmanager
def stopping() -> Iterator[None]:
    """Within, SIGNALS raise Stopped; those that were ignored before (nohup) stay so. Does nothing but in the main thread."""
    last = -AGAIN_SECONDS

    def stop(number: int, frame: Any) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= AGAIN_SECONDS:
            raise Stopped(number)

    with handled_by(stop):
        yield


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Within, SIGNALS go to `handler`; those that are ignored stay so, as under `nohup` and in a shell's background.

    Does nothing but in the main thread: no other may say who handles them.
    """
    main = threading.current_thread() is threading.main_thread()
    heard = [one for one in SIGNALS if main and signal.getsignal(one) not in (None, signal.SIG_IGN)]
    before = {one: signal.signal(one, handler) for one in heard}
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)


@contextmanager
def written_to(end: socket.socket) -> Iterator[None]:
    """Within, the number of each signal that has a handler is also written to `end`, a byte each, before the handler runs.

    Does nothing but in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end.setblocking(False)
    before = signal.set_wakeup_fd(end.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


@contextmanager
def held() -> Iterator[None]:
    """Within, SIGNALS wait, where the system can; a process that is started here never gets them: its parent ends it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ended_by(code: int) -> str:
    """How a process came to its end, by its exit code: "signal SIGSEGV", "exit code 3"."""
    if code == -getattr(signal, "SIGKILL", 9):
        return "signal SIGKILL, which is what a system that is out of memory sends"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
