"""Run jobs through submitit, by Slurm or, to try it out, by processes of this machine."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.executors.attempts import LOG, PLAN, SPEC, Reader, last_lines
from lorabuild.executors.clusters import MINUTES, Cluster, Settings
from lorabuild.executors.processes import Debug, Local
from lorabuild.executors.protocol import Event, Resources, Status, ending
from lorabuild.executors.sbatch import Slurm

PAUSE_S = 0.5  # between two looks at a file that has nothing new
OLD_S = 30 * 86400.0  # a job's folder that nobody wrote to for a month; no cluster lets one job run as long


def executor(settings: Mapping[str, Any], root: Path) -> Submitit:
    """By [executor] of lorabuild.toml and the repository's folder."""
    own = Settings(**(settings.get("slurm") or {}))
    places: Mapping[str, Callable[[Settings], Cluster]] = {"slurm": Slurm, "local": Local, "debug": Debug}
    return Submitit(own, root / Path(own.folder).expanduser(), places[own.cluster](own))


@dataclass(eq=False)
class _Job:
    """What this process knows of a job: how far its events are read, and since when it is over without a last one."""

    job_id: str
    folder: Path
    reader: Reader
    over_since: float | None = None
    stopped: Event | None = None  # how its last attempt ended, if so: its end only when no other begins


@dataclass(eq=False)
class Submitit:
    """Four calls (executors/protocol.py). A handle is a job's id and the name of its folder: "4242 train-ember-1f0c9a2e".

    `folder` must be seen by the nodes under the same path. `command`: what runs on the node with the path of the spec behind;
    None: `python -m lorabuild.worker`, by the node's Python.
    """

    settings: Settings
    folder: Path
    cluster: Cluster
    command: Sequence[str] | None = None
    pause_s: float = PAUSE_S
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _swept: bool = False

    def submit(self, spec: Mapping[str, Any], resources: Resources) -> str:
        """Write the job's folder and hand it over. Raises JobError: no submitit, no sbatch, or it says no."""
        name = str(spec["name"])
        folder = self.folder.resolve() / f"{re.sub(r'[^A-Za-z0-9_.@=+-]', '-', name)}-{secrets.token_hex(4)}"
        self._sweep()
        folder.mkdir(parents=True)
        plan = {
            "command": list(self.command) if self.command else None,
            "minutes": resources.minutes or MINUTES,
            "signal_delay_s": self.settings.signal_delay_s,
        }
        (folder / SPEC).write_text(json.dumps(spec))
        (folder / PLAN).write_text(json.dumps(plan))
        try:
            job_id = self.cluster.submit(folder, name, resources)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return f"{job_id} {folder.name}"

    def poll(self, handle: str) -> Status:
        job = self._job(handle)
        if not job.folder.is_dir():
            return Status("lost", (), f"the folder of its job is gone: {job.folder}")
        events = self._news(job)
        if ending(events):
            return Status("ended", events)
        if not events:
            time.sleep(self.pause_s)
        look = self.cluster.look(job.job_id, job.folder)
        if look.state != "over":
            job.over_since = None
            return Status(look.state, events, look.text)
        _refresh(job.folder)
        events = [*events, *self._news(job)]  # between the first look and its end
        if ending(events):
            return Status("ended", events)
        if look.fault:
            return Status("ended", [*events, {"event": "failed", "lines": [look.fault]}], look.text)
        job.over_since = job.over_since or time.monotonic()
        if time.monotonic() - job.over_since < self.cluster.settle_s:
            return Status("running", events, look.text)
        if job.stopped is None:
            return Status("lost", events, look.text)
        stopped = {**job.stopped, "why": job.stopped.get("why") or f"it was told to stop; {look.text}"}
        return Status("ended", [*events, stopped], look.text)

    def cancel(self, handle: str) -> None:
        self.cluster.cancel(self._job(handle).job_id)

    def logs(self, handle: str) -> str:
        """Of the worker's own log, and behind it what Slurm and submitit wrote: a setup line that failed, a module that lacks."""
        job = self._job(handle)
        outer = [
            line for line in last_lines(job.folder / f"{job.job_id}_0_log.err", 20) if "submitit WARNING" not in line
        ]
        return "\n".join([*last_lines(job.folder / LOG, 40), *outer])

    def _job(self, handle: str) -> _Job:
        if handle not in self._jobs:
            job_id, _, name = handle.partition(" ")
            folder = self.folder.resolve() / (name or "?")
            self._jobs[handle] = _Job(job_id, folder, Reader(folder))
        return self._jobs[handle]

    def _news(self, job: _Job) -> list[Event]:
        """New events. That an attempt was stopped is held back: the job may be queued again, and go on."""
        found = []
        for event in job.reader.new():
            if event["event"] == "stopped":
                job.stopped = event
            else:
                job.stopped = None
                found.append(event)
        return found

    def _sweep(self) -> None:
        """Remove, once, the folders of jobs that were over long ago."""
        swept, self._swept = self._swept, True
        for folder in () if swept else self.folder.glob("*/"):
            with suppress(OSError):  # its job is at work, or another driver removes it: files come and go
                newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if (folder / PLAN).exists() and time.time() - newest > OLD_S:
                    shutil.rmtree(folder, ignore_errors=True)


def _refresh(folder: Path) -> None:
    """Have NFS look at a folder anew: a change of its mode, to what it is, drops what the client remembers of it."""
    try:
        folder.chmod(folder.stat().st_mode)
    except OSError:
        pass
