"""Keep worker processes warm and run jobs in them, at most one a slot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorabuild.errors import InputChanged, Interrupted, JobError
from lorabuild.store import Output

Saved = Callable[[str, Output], None]
Progress = Callable[[int, int, str], None]
Warn = Callable[[str], None]


class Pool:
    """Worker processes in groups of their own. A worker that is idle takes the next job; the base stays in its memory."""

    def __init__(self, logs: Path):
        self._logs = logs
        self._mutex = threading.Lock()
        self._idle: list[subprocess.Popen[str]] = []
        self._all: list[subprocess.Popen[str]] = []
        self._closed = False

    def open(self, slots: int) -> None:
        """Allow `slots` jobs at once, each with its share of the cores."""
        self._slots = threading.Semaphore(slots)
        self._threads = max(1, _cores() // slots)

    def start_early(self) -> None:
        """Start a worker while there is something else to do: Python and our stages are imported by the time of a job."""
        with self._mutex:
            if not self._all:
                self._all = [self._start()]
                self._idle = list(self._all)

    def run(self, spec: Mapping[str, Any], saved: Saved, progress: Progress, warn: Warn) -> dict[str, Any]:
        """Run one job and return what the worker reports at its end: {"pieces", "notes", "made_with"}.

        Raises JobError (one line; the job's log has the rest) and InputChanged.
        """
        log = self._logs / f"{spec['name'].replace(':', '-')}.log"
        with self._slots:
            worker = self._take()
            last: dict[str, Any] = {}
            try:
                last = self._converse(
                    worker, {**spec, "log": str(log), "threads": self._threads}, saved, progress, warn
                )
            finally:  # a worker that has not told its end is in an unknown state
                self._put_back(worker) if last else _kill(worker)
            return _result(last, log)

    def close(self) -> None:
        """End all workers. What a busy one was at is taken up again by the next build."""
        with self._mutex:
            self._closed = True
            workers, self._all, self._idle = self._all, [], []
        for worker in workers:
            _kill(worker)

    def _converse(
        self, worker: subprocess.Popen[str], spec: Mapping, saved: Saved, progress: Progress, warn: Warn
    ) -> dict[str, Any]:
        """Give the worker a job, pass on what it reports, and return its last event."""
        assert worker.stdout is not None
        _tell(worker, spec)
        for line in worker.stdout:
            event = json.loads(line)
            match event["event"]:
                case "progress":
                    progress(event["done"], event["total"], event["text"])
                case "warn":
                    warn(event["text"])
                case "saved":
                    saved(event["role"], Output(event["digest"], event["size"]))
                    _tell(worker, {"noted": event["role"]})
                case _:
                    return event
        if self._closed:
            raise Interrupted
        code = worker.wait()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise JobError(f"the worker ended in the middle of the job: {cause} (log: {spec['log']})")

    def _take(self) -> subprocess.Popen[str]:
        with self._mutex:
            while self._idle:
                worker = self._idle.pop()
                if worker.poll() is None:
                    return worker
            if self._closed:
                raise Interrupted
            worker = self._start()
            self._all = [one for one in self._all if one.poll() is None] + [worker]
            return worker

    def _put_back(self, worker: subprocess.Popen[str]) -> None:
        with self._mutex:
            self._idle.append(worker)

    def _start(self) -> subprocess.Popen[str]:
        self._logs.mkdir(parents=True, exist_ok=True)
        with open(self._logs / "worker.log", "a") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "lorabuild.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C at the terminal is the driver's; it decides what becomes of workers
            )


def _tell(worker: subprocess.Popen[str], message: Mapping[str, Any]) -> None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(json.dumps(message) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        pass  # its output has ended, too, and that is where we notice


def _result(last: Mapping[str, Any], log: Path) -> dict[str, Any]:
    """What a worker's last event means: a result, or an exception."""
    match last["event"]:
        case "changed":
            raise InputChanged(Path(last["path"]))
        case "failed":
            raise JobError(*last["lines"])
        case "crashed":
            raise JobError(f"{last['message']} (log: {log})")
    return dict(last)


def _kill(worker: subprocess.Popen[str]) -> None:
    if worker.poll() is not None:
        return  # its number may be somebody else's by now
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    except AttributeError:  # no process groups here (Windows)
        worker.kill()
    worker.wait()


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
