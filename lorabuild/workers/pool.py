"""Keep worker processes warm and run jobs in them: the one that has a job's base in memory gets the job."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorabuild.errors import Interrupted, JobError
from lorabuild.executors.protocol import LAST
from lorabuild.memory import short_of
from lorabuild.workers.process import Worker
from lorabuild.workers.slots import Place, Slots


class Pool:
    """Worker processes in groups of their own, each with one job at a time, and the slots that they work in."""

    slots: Slots

    def __init__(self, logs: Path):
        self._logs = logs
        self._mutex = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: list[Worker] = []
        self.stopping = False
        self.logs: dict[str, Path] = {}  # of the jobs that were run

    def open(self, slots: Slots) -> None:
        self.slots = slots

    def start_early(self) -> None:
        """Start a worker while there is something else to do: Python and our stages are imported by the time of a job."""
        with self._mutex:
            if not self._idle and not self._busy:
                self._idle.append(self._start())

    def events(self, spec: Mapping[str, Any], place: Place) -> Iterator[dict[str, Any]]:
        """Run one job at a place: what the worker reports, up to one of LAST. Who asks for more has noted what came before.

        `spec["base"]`: component -> digest of the networks that the job will load, `spec["loads"]`: what of memory that takes.
        Closed before its end, it ends the worker. Raises JobError if the worker dies, and Interrupted if the build was stopped.
        """
        log = self.logs[spec["name"]] = self._logs / log_name(spec["name"])
        log.unlink(missing_ok=True)
        spec = {**spec, "log": str(log), "threads": place.threads, "device": place.device}
        cause = ""
        for _ in range(2):
            worker, last = self._take(spec), None
            try:
                worker.tell(spec)
                for event in worker.events():
                    if event["event"] in LAST:
                        last = event
                        break
                    yield event
                    if event["event"] == "saved":
                        worker.tell({"noted": event["role"]})
            except BaseException:  # of the driver's own: what the worker is at, nobody knows
                worker.end()
                raise
            finally:
                self._busy.remove(worker)
            if last:
                self._keep(worker, last)
                yield last
                return
            if self.stopping:
                raise Interrupted
            cause = worker.ended()
            if log.exists():
                raise JobError(f"the worker ended in the middle of the job: {cause}")
        raise JobError(f"no worker can be started: {cause} (see {self._logs / 'worker.log'})")

    def stop(self) -> None:
        """Take no more jobs. Of those that run, who asks for it saves what it has and ends; all others end now."""
        self.slots.shut_down()
        with self._mutex:
            self.stopping = True
            busy = list(self._busy)
        for worker in busy:
            worker.tell({"stop": True})

    def close(self) -> None:
        """End all workers. What a busy one was at is taken up again by the next build."""
        with self._mutex:
            self.stopping = True
            workers = [*self._busy, *self._idle]
        for worker in workers:
            worker.end()

    def _take(self, spec: Mapping[str, Any]) -> Worker:
        """The idle worker that suits a job best, or a new one."""
        device, wanted = spec["device"], set(spec["base"].values())
        with self._mutex:
            if self.stopping:
                raise Interrupted
            self._idle = [worker for worker in self._idle if worker.alive()]
            fit = [worker for worker in self._idle if not worker.used or worker.device == device]
            # On a GPU the one that sits there already: two would not both have room.
            worker = max(fit, key=lambda one: (one.used and bool(device), *_suits(one, wanted)), default=None)
            if worker is not None:
                self._idle.remove(worker)
            self._make_way(device)
            if not wanted <= set(worker.held if worker else ()):
                self._make_room(spec["loads"])
            worker = worker or self._start()
            worker.device, worker.used = device, True
            self._busy.append(worker)
            return worker

    def _make_way(self, device: str | None) -> None:
        """End idle workers that sit on a part of these devices, or on these and others."""
        wanted = set((device or "").split(",")) - {""}
        for worker in list(self._idle):
            if worker.used and worker.device != device and wanted & set((worker.device or "").split(",")):
                self._idle.remove(worker)
                worker.end()

    def _make_room(self, need: int) -> None:
        """End idle workers, the largest first, while what they hold leaves too little memory for a base."""
        for worker in sorted(self._idle, key=lambda one: -sum(one.held.values())):
            if not worker.held or not short_of(need):
                return
            self._idle.remove(worker)
            worker.end()

    def _keep(self, worker: Worker, last: Mapping[str, Any]) -> None:
        """It waits for its next job, unless it met a fault, after which nothing is known of its state."""
        if last["event"] == "crashed":
            worker.end()
            return
        worker.held = last["held"]
        with self._mutex:
            self._idle.append(worker)

    def _start(self) -> Worker:
        return Worker.start(self._logs / "worker.log")


def log_name(job: str) -> str:
    """The file that a job's output goes to: "chop-ember@mini.log"."""
    return re.sub(r"[^\w@.=+-]", "-", job) + ".log"


def _suits(worker: Worker, wanted: set[str]) -> tuple[int, int]:
    """How much of what a job loads the worker has in memory already; then, how little it has that others may want."""
    return len(wanted & worker.held.keys()), -len(worker.held)
