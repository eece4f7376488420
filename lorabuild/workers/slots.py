"""Which jobs may run at the same time, on which device and with how many threads."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lorabuild.ahead import cores
from lorabuild.errors import Interrupted


@dataclass(frozen=True)
class Place:
    """Where a job runs. `device` is a value for CUDA_VISIBLE_DEVICES: "0", "" for no GPU, None on a machine without any.

    `threads`, of each of its processes, do not depend on how many jobs run just now: a job's bytes do not depend on its
    company. `processes`: how many it may be, with a device each ("0,1") where there are devices.
    """

    device: str | None
    threads: int
    waited: float = 0.0  # seconds, until it was free
    processes: int = 1


@dataclass(eq=False)
class _Waiter:
    """A job that waits for `needs`, slots by kind, and so many devices."""

    needs: Mapping[str, int]
    devices: int
    urgency: float = 0.0


class Slots:
    """`gpu` heavy jobs and `cpu` others at once. Without a GPU a heavy job works on the processor, and takes both.

    More `gpu` slots than devices share them in turn. All that a job needs is taken in one step, so that no two wait for
    each other. Of the jobs that wait and for which there is room the most urgent one goes first, of equals the first that came.
    """

    def __init__(self, gpu: int, cpu: int, find_devices: Callable[[], Sequence[str]] = lambda: ()):
        self._free = {"gpu": gpu, "cpu": cpu, "jobs": gpu + cpu}
        self._all = dict(self._free)
        self._find_devices = find_devices
        self._devices: list[str] | None = None  # of the free slots, once it is known
        self._there = 0  # devices
        self._threads = max(1, cores() // cpu)
        self._changed = threading.Condition()
        self._line: list[_Waiter] = []
        self._looking = threading.Lock()
        self.shut = False

    def limit(self, jobs: int) -> None:
        """Allow at most `jobs` at once, of whatever kind."""
        with self._changed:
            self._all["jobs"] = min(jobs, self._all["jobs"])
            self._free["jobs"] = min(jobs, self._free["jobs"])

    def shut_down(self) -> None:
        """Give no place any more: who waits for one, or asks for one later, is told that the build was stopped."""
        self.shut = True
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def place(self, kind: str, processes: int = 1, urgency: Callable[[], float] = lambda: 0.0) -> Iterator[Place]:
        """Wait for a place for a job of the kind "gpu" or "cpu" and hold it. Raises Interrupted if the build stops.

        A job of several processes takes a slot, and a device, for each; of no more than there are. `urgency` is asked for,
        of one that has to wait, where more than one heavy job may run at once: else an order is as good as another, and the
        one that they come in begins with a base that is in memory.
        """
        start = time.monotonic()
        needs, count = self.takes(kind, processes)
        me = _Waiter(needs, count if self._there and kind == "gpu" else 0)
        with self._changed:
            devices = self._enter(me) if not self._line and not self.shut and self._fits(me) else None
        if devices is None:
            # It takes its time, and nobody waits for it.
            me.urgency = urgency() if self._all["gpu"] > 1 and not self.shut else 0.0
            devices = self._wait(me)
        try:
            device = ",".join(devices) if devices else "" if self._there else None
            yield Place(device, self._threads, time.monotonic() - start, count)
        finally:
            with self._changed:
                for one, number in needs.items():
                    self._free[one] += number
                self._devices[:0] = devices  # first, as their worker is warm
                self._changed.notify_all()

    def takes(self, kind: str, processes: int = 1) -> tuple[dict[str, int], int]:
        """What a job holds of `room`, and how many processes it gets."""
        self._look()
        kinds = {kind} if kind == "gpu" and self._there else {kind, "cpu"}
        devices = [self._there] if kind == "gpu" and self._there else []
        count = min(processes, *(self._all[one] for one in kinds), *devices)
        return {"jobs": 1} | dict.fromkeys(kinds, count), count

    @property
    def room(self) -> dict[str, int]:
        """How many places there are of each kind; "jobs": for all together."""
        return dict(self._all)

    def _wait(self, me: _Waiter) -> list[str]:
        with self._changed:
            self._line.append(me)
            try:
                self._changed.wait_for(lambda: self.shut or self._next() is me)
            finally:
                self._line.remove(me)
                self._changed.notify_all()  # there may be room for who is next
            if self.shut:
                raise Interrupted
            return self._enter(me)

    def _enter(self, me: _Waiter) -> list[str]:
        """Take what a job needs; the devices that it gets."""
        for one, number in me.needs.items():
            self._free[one] -= number
        devices = list(dict.fromkeys(self._devices or ()))[: me.devices]
        for device in devices:
            self._devices.remove(device)
        return devices

    def _next(self) -> _Waiter | None:
        """Who goes first of those for whom there is room."""
        return max(filter(self._fits, self._line), key=lambda one: one.urgency, default=None)

    def _fits(self, one: _Waiter) -> bool:
        """Is there room for a job? Its processes do not share a device, as slots may."""
        enough = all(self._free[kind] >= number for kind, number in one.needs.items())
        return enough and len(set(self._devices or ())) >= one.devices

    def _look(self) -> None:
        """Find the devices when there is a first job: a build with nothing to do need not know.

        Nobody who stops the build waits for it: a driver that is not well takes its time.
        """
        with self._looking:
            if self._devices is None and not self.shut:
                found = self._find_devices()
                self._there = len(set(found))
                self._devices = [found[slot % len(found)] for slot in range(self._all["gpu"])] if found else []


def cuda_devices(environment: Mapping[str, str] | None = None) -> list[str]:
    """The GPUs that a CUDA program started here would see, as values for CUDA_VISIBLE_DEVICES. No library is asked:
    the variable itself if it is set, else the driver's device files, else (WSL, Windows) `nvidia-smi`."""
    visible = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        listed = [one.strip() for one in visible.split(",")]
        ends = [number for number, one in enumerate(listed) if one in ("", "-1")]  # CUDA stops at the first invalid one
        return listed[: ends[0]] if ends else listed
    count = len(glob.glob("/dev/nvidia[0-9]*"))  # in a container only some are there, and CUDA counts those from 0
    return [str(number) for number in range(count or _listed_by_driver())]


def _listed_by_driver() -> int:
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    try:
        said = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in said.splitlines())
