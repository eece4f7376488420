"""Worlds whose jobs go through submitit: by processes of this machine, or by stand-ins of Slurm's programs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import slurm_standin

from lorabuild.executors import slurm
from lorabuild.executors.protocol import Resources, Status
from lorabuild.executors.slurm import Submitit

STANDIN = Path(slurm_standin.__file__)
COMMAND = [sys.executable, str(STANDIN), "worker"]
PATIENCE_S = 120


class World:
    """A repository, a store, an executor with the stand-in worker, and what its jobs have told so far."""

    def __init__(self, root: Path, settings: dict[str, Any]):
        self.root, self.settings = root, settings
        self.store = root / "store"
        self.store.mkdir()
        self.handles: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Another driver, which knows nothing but handles."""
        self.executor: Submitit = slurm.executor({"slurm": self.settings}, self.root)
        self.executor.command, self.executor.pause_s = COMMAND, 0.02
        self.executor.cluster.settle_s = 0.0
        if queue := getattr(self.executor.cluster, "queue", None):
            queue.every_s = 0.05
        self.events: list[Any] = []

    def submit(self, resources: Resources | None = None, **spec: Any) -> str:
        given = {"name": "train:ember", "store": str(self.store), "steps": 6} | spec
        handle = self.executor.submit(given, resources or Resources(minutes=60))
        self.handles.append(handle)
        return handle

    def poll(self, handle: str) -> Status:
        status = self.executor.poll(handle)
        self.events += status.events
        return status

    def until(self, handle: str, wanted: Callable[[Status], bool]) -> Status:
        """Poll until a status is as wanted. Over time: an error that shows all there is."""
        end = time.monotonic() + PATIENCE_S
        while not wanted(status := self.poll(handle)):
            over = status.state in ("ended", "lost") or time.monotonic() > end
            assert not over, f"{status}\n{self.events}\n{self.executor.logs(handle)}\n{self.folder(handle)}"
        return status

    def over(self, handle: str) -> Status:
        return self.until(handle, lambda status: status.state in ("ended", "lost"))

    def at_step(self, handle: str, step: int) -> None:
        self.until(handle, lambda status: any(event.get("done") == step for event in self.events))

    def folder(self, handle: str) -> Path:
        return self.root / ".lorabuild/slurm" / handle.split()[1]

    def steps(self) -> list[int]:
        return [int(line.split()[0]) for line in (self.store / "steps").read_text().splitlines()]

    def workers(self) -> list[int]:
        return sorted({int(line.split()[1]) for line in (self.store / "steps").read_text().splitlines()})

    def pid(self) -> int:
        """Of the worker that made the last step."""
        return int((self.store / "steps").read_text().split()[-1])

    def end(self) -> None:
        """Nothing runs on after a test."""
        for handle in self.handles:
            folder = str(self.folder(handle))
            for pid in processes_with(folder):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


def processes_with(text: str) -> list[int]:
    said = subprocess.run(["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in said.splitlines() if text in line]


class FakeSlurm(World):
    def __init__(self, root: Path):
        self.slurm = root / "standin"
        self.slurm.mkdir()
        super().__init__(root, {"signal_delay_s": 20, "partition": "gpu"})

    def job(self, handle: str) -> Path:
        return self.slurm / f"job-{handle.split()[0]}"

    def end(self) -> None:
        for job in self.slurm.glob("job-*"):
            slurm_standin.say(job, "CANCELLED")
        (self.slurm / "hold").unlink(missing_ok=True)
        super().end()
        end = time.monotonic() + PATIENCE_S
        for handle in self.handles:
            while processes_with(f"supervise {handle.split()[0]}") and time.monotonic() < end:
                time.sleep(0.05)


def programs(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STANDIN}" {name} "$@"\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)


@contextmanager
def stood_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    """A world whose Slurm are stand-ins of its programs, on PATH."""
    programs(root / "bin", *slurm_standin.PROGRAMS)
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_SLURM", str(root / "standin"))
    world = FakeSlurm(root)
    try:
        yield world
    finally:
        world.end()


def until(reached: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)
