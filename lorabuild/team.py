"""Start the other processes of a job that wants several, and end them with it; `lorabuild.rank` is what they run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from lorabuild.errors import JobError
from lorabuild.signals import ended_by
from lorabuild.stage import Job
from lorabuild.workspace import Workspace

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lorabuild.nn.parallel import Alone, Ranks

MEETING = "meeting"  # a file in the scratch folder
SETTLING_SECONDS = 10.0  # until it shows which process was lost

Process = subprocess.Popen[str]


def team(job: Job, workspace: Workspace, count: int, device: str) -> AbstractContextManager[Alone | Ranks]:
    """The processes that work on the job, of which this is one. `count` is 1: alone.

    In the first process it starts the others, which run the same job from its beginning, with `options["rank"]` and
    nothing to write to. They have all that they read of the job behind them when they come here.
    """
    from lorabuild.nn.parallel import Alone, joined

    rank = job.options.get("rank", 0)
    if count == 1:
        return nullcontext(Alone())
    if rank:
        return joined(workspace.scratch / MEETING, rank, count, device)
    return _leading(job, workspace, count, device)


@contextmanager
def _leading(job: Job, workspace: Workspace, count: int, device: str) -> Iterator[Ranks]:
    from lorabuild.nn.parallel import Lost, joined

    meeting = workspace.scratch / MEETING
    meeting.unlink(missing_ok=True)
    others = [_start(_spec(job, workspace, count, rank)) for rank in range(1, count)]
    try:
        with joined(meeting, 0, count, device, lambda: _look(others)) as ranks:
            yield ranks
    except Lost:
        deadline = time.monotonic() + SETTLING_SECONDS
        while time.monotonic() < deadline:
            _look(others)
            time.sleep(0.05)
        raise JobError("another process of the training does not answer (see the job's log)") from None
    finally:
        for process in others:
            process.kill()
            process.communicate()
        meeting.unlink(missing_ok=True)


def _spec(job: Job, workspace: Workspace, count: int, rank: int) -> dict[str, Any]:
    """All that another process is told: plain data."""
    import torch

    return {
        "name": job.name,
        "run": f"lorabuild.stages.{job.stage}",
        "params": job.params,
        "options": {**job.options, "processes": count, "rank": rank},
        "outputs": list(job.outputs),
        "snapshots": list(job.snapshots),
        "scratch": str(workspace.scratch),
        "paths": {role: str(path) for role, path in workspace.paths.items()},
        "digests": dict(workspace.digests),
        "threads": torch.get_num_threads(),
    }


def _start(spec: dict[str, Any]) -> Process:
    """In the process group of this one: whoever ends that ends all."""
    command = [sys.executable, "-m", "lorabuild.rank"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(spec) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it is gone, which is noticed where the others are waited for
    return process


def _look(others: Sequence[Process]) -> None:
    """Raise JobError if one of the processes has ended: with what it said last, else with how it ended."""
    for rank, process in enumerate(others, 1):
        if (code := process.poll()) is not None:
            assert process.stdout is not None
            said = process.stdout.read().strip()
            raise JobError(said or f"process {rank + 1} of {len(others) + 1} ended: {ended_by(code)}")
