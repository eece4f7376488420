"""One job on a node of a Ray cluster: an actor that runs the worker, keeps what it says, and ends all of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorabuild import __version__
from lorabuild.executors.protocol import LAST, ending
from lorabuild.files import tail
from lorabuild.signals import ended_by

GRACE_SECONDS = 30.0  # for a worker that was told to stop: one micro-batch, the writing and the upload of a state
EXIT_SECONDS = 30.0  # for a worker whose job is over
LINGER_SECONDS = 60.0  # for the end of a job to be fetched; then the driver is away, and the GPU is given back
TAIL_BYTES = 4000  # of the log, which goes with every answer, so that the driver has it when the node is gone

# When nobody holds its input open any more: ends the group of processes $1, removes the folder $2. Ray kills an actor's own
# children when it ends the actor: this one becomes nobody's child. (What a shell puts into the background has no input.)
GUARD = 'exec 3<&0; { cat <&3 >/dev/null; kill -s KILL -- "-$1" 2>/dev/null; rm -rf -- "$2"; } &'


class NodeJob:
    """The worker's process, in a group of its own; a thread reads its events. No method waits.

    `spec`: JSON. `command`: what it is given to; empty: this Python's `-m lorabuild.worker`. `gpus`: how many Ray has
    given to this actor, which are in its CUDA_VISIBLE_DEVICES. `minutes`: after which it is stopped, 0 for never.
    `version`: the driver's, of lorabuild.
    """

    def __init__(self, spec: str, command: Sequence[str], gpus: int, minutes: float, version: str):
        self.over = threading.Event()
        self._events: list[dict[str, Any]] = []
        self._how = self._log = ""
        self._told = threading.Event()  # that it is over
        self._where = _address()
        self._process: subprocess.Popen[bytes] | None = None
        if version != __version__:
            line = f"node {self._where} has lorabuild {__version__}, this machine {version}: install the same on all"
            self._events.append({"event": "failed", "lines": [line]})
            self.over.set()
            return
        self._folder = Path(tempfile.mkdtemp(prefix="lorabuild-ray-"))
        (self._folder / "spec.json").write_text(spec)
        self._process = self._start(command or [sys.executable, "-m", "lorabuild.worker"], gpus)
        reads = self._process, guard(self._process.pid, self._folder)
        threading.Thread(target=self._read, args=reads, daemon=True).start()
        if minutes:
            threading.Thread(target=self._end_after, args=(self._process, 60 * minutes), daemon=True).start()

    def look(self, since: int) -> dict[str, Any]:
        """The events from number `since` on; the end of the log; where it runs; how it ended ("" if it has not).

        The last event is told when the process has ended: then the GPU is free.
        """
        over = self.over.is_set()  # first: all events are there by then
        if over:
            self._told.set()
        events = self._events[since:]
        return {
            "events": [event for event in events if over or event["event"] not in LAST],
            "over": over,
            "how": self._how,
            "log": self._log if over else tail(self._folder / "log", TAIL_BYTES),
            "where": self._where,
        }

    def stop(self) -> None:
        """SIGTERM, which lets a training keep its state; who is still there after GRACE_SECONDS is ended."""
        self._told.set()  # who stops it has no more questions
        if self._process:
            threading.Thread(target=self._end_after, args=(self._process, 0.0), daemon=True).start()

    def wait_until_told(self) -> None:
        """Return when the job is over and its end was fetched, or nobody has fetched it for LINGER_SECONDS."""
        self.over.wait()
        self._told.wait(LINGER_SECONDS)

    def _start(self, command: Sequence[str], gpus: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if not gpus:  # whatever this version of Ray does with the variable
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with open(self._folder / "log", "wb") as log:
            return subprocess.Popen(
                [*command, str(self._folder / "spec.json")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=self._folder,
                start_new_session=True,
            )

    def _read(self, process: subprocess.Popen[bytes], warden: subprocess.Popen[bytes]) -> None:
        threading.Thread(target=_end_rest, args=(process,), daemon=True).start()
        for line in process.stdout or ():
            if (event := _event(line)) is not None:
                self._events.append(event)
                if event["event"] in LAST:
                    threading.Thread(target=self._end_after, args=(process, EXIT_SECONDS), daemon=True).start()
        code = process.wait()
        if ending(self._events) is None:
            self._how = f"its worker on {self._where} ended without a last word: {ended_by(code)}"
        self._log = tail(self._folder / "log", TAIL_BYTES)
        warden.communicate()  # its input is closed: it clears away
        self.over.set()

    def _end_after(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        if not self.over.wait(seconds):
            process.terminate()
            if not self.over.wait(GRACE_SECONDS):
                _kill_group(process.pid)


class RayJob(NodeJob):
    """The actor itself. Who has fetched the end of the job ends it; so does it itself, lest it keep its GPU for nothing."""

    def __init__(self, spec: str, command: Sequence[str], gpus: int, minutes: float, version: str):
        super().__init__(spec, command, gpus, minutes, version)
        threading.Thread(target=self._end_in_time, daemon=True).start()

    def _end_in_time(self) -> None:
        self.wait_until_told()
        time.sleep(1)  # for the answer to be on its way
        os._exit(0)


def _event(line: bytes) -> dict[str, Any] | None:
    """What a line of the worker's output says; None if it is no event: a library has printed it."""
    if not line.endswith(b"\n"):
        return None  # it died in the middle of a word
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def guard(group: int, folder: Path) -> subprocess.Popen[bytes]:
    """A process that outlives this one, and then clears away. Its input is a pipe that only we hold open."""
    command = ["sh", "-c", GUARD, "sh", str(group), str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _end_rest(process: subprocess.Popen[bytes]) -> None:
    """When the worker ends, so does what it has started, which would hold its output open for ever."""
    process.wait()
    _kill_group(process.pid)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left


def _address() -> str:
    """What Ray calls this node; outside of Ray, this machine's name."""
    ray = sys.modules.get("ray")
    return ray.util.get_node_ip_address() if ray and ray.is_initialized() else socket.gethostname()
