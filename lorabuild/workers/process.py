"""One worker process: start it, talk to it in lines of JSON, and end it with all that it has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.signals import ended_by


@dataclass(eq=False)
class Worker:
    """`device`: what its CUDA_VISIBLE_DEVICES was set to, which holds for its life; no job has set it yet while `used` is
    False. `held`: digest of each network in its memory -> bytes, as it told at the end of its last job."""

    process: subprocess.Popen[str]
    device: str | None = None
    used: bool = False
    held: Mapping[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def start(cls, log: Path) -> Worker:
        """A new worker. What it prints outside of jobs goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "lorabuild.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C at the terminal is the driver's; it decides what becomes of workers
            )
        worker = cls(process)
        threading.Thread(target=worker._watch, daemon=True).start()
        return worker

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a line. If the worker is gone, its output has ended, too, and that is where it is noticed."""
        assert self.process.stdin is not None
        with self._lock:  # a stop comes from another thread than a job
            try:
                self.process.stdin.write(json.dumps(message) + "\n")
                self.process.stdin.flush()
            except (BrokenPipeError, ValueError):
                pass

    def events(self) -> Iterator[dict[str, Any]]:
        """What it reports, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.endswith("\n"):
                return  # it died in the middle of a word
            yield json.loads(line)

    def alive(self) -> bool:
        """Whether it can take a job."""
        return self.process.poll() is None

    def end(self) -> None:
        """End it at once, with all that it has started."""
        if self.alive():
            self._end_group()
            self.process.wait()

    def ended(self) -> str:
        """How it came to its end, whose output has ended: "signal SIGSEGV", "exit code 3"."""
        try:
            return ended_by(self.process.wait(10))
        except subprocess.TimeoutExpired:
            self.end()
            return "it has closed its output"

    def _watch(self) -> None:
        """When it ends, so does what it has started, which would hold its output open for ever."""
        self.process.wait()
        self._end_group()  # at once: while a member is left, nobody else gets the group's number

    def _end_group(self) -> None:
        """Kill the process group that the worker leads."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        except AttributeError:  # no process groups here (Windows)
            self.process.kill()
