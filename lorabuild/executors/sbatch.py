"""A Slurm cluster: submit by submitit's sbatch script, look by squeue, cancel by scancel."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError
from lorabuild.executors import onnode
from lorabuild.executors.clusters import MINUTES, Look, Settings, submitit
from lorabuild.executors.protocol import Resources
from lorabuild.executors.squeue import Queue, complaint, missing

UNSEEN_S = 60.0  # a job that was just submitted may not be in the queue yet
BUSY = ("timed out", "Unable to contact", "temporarily unavailable", "try again")
# Reasons of a job that asks for more than it may ever have. (Slurm's job_reason_codes page; a QOSMaxJobsPerUserLimit passes.)
NEVER = re.compile(
    r"PartitionTimeLimit|BadConstraints|InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed|(QOS|Assoc)Max\w*PerJob\w*"
)
HELD = re.compile(r"launch failed requeued held|job requeued in held state")  # its node could not start it
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # where the controller is, and who asks
TRIES_S = (5.0, 20.0)  # waits between tries of an sbatch whose controller is busy


def parameters(name: str, resources: Resources, settings: Settings) -> dict[str, Any]:
    """What a job asks Slurm for, in submitit's words."""
    asked: dict[str, Any] = {
        "job_name": name,
        "time": math.ceil(resources.minutes or MINUTES),
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus,
        "srun_args": [f"--cpus-per-task={resources.cpus}"],  # Slurm 22.05 to 23.02: srun does not inherit it
        "signal_delay_s": settings.signal_delay_s,
        "wckey": None,  # submitit's own, which no cluster knows
        "additional_parameters": {"requeue": True} | dict(settings.sbatch),
    }
    if resources.memory_gb:
        asked["mem"] = f"{math.ceil(resources.memory_gb * 1024)}M"
    if resources.gpus:
        gpus = resources.gpus
        asked |= {"gres": settings.gres.replace("{gpus}", str(gpus))} if settings.gres else {"gpus_per_node": gpus}
    for key in ("partition", "account", "qos", "constraint"):
        if value := getattr(settings, key):
            asked[key] = value
    if settings.setup:
        asked["setup"] = list(settings.setup)
    return asked


class Slurm:
    """A cluster, by sbatch, squeue, sacct and scancel, all of which are called on this machine."""

    settle_s = 30.0  # NFS shows another machine's new file after acdirmin, 30 s

    def __init__(self, settings: Settings, queue: Queue | None = None):
        self.settings = settings
        self.queue = queue or Queue()
        self._unseen: dict[str, float] = {}  # job id -> since when Slurm does not know it
        self._cancelled: set[str] = set()  # by this process
        self._lock = threading.Lock()  # submitit's clean_env changes this process's environment

    def submit(self, folder: Path, name: str, resources: Resources) -> str:
        asked = parameters(name, resources, self.settings)
        for wait_s in (*TRIES_S, None):
            try:
                return self._submit(folder, asked)
            except Rejected as error:
                if wait_s is None or not any(word in error.line for word in BUSY):
                    raise JobError(f"sbatch: {error.line}") from None
                time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _submit(self, folder: Path, asked: Mapping[str, Any]) -> str:
        package = submitit()
        for program in ("sbatch", "srun"):
            if not shutil.which(program):
                raise missing(program)
        errors = folder / "sbatch.err"

        class Executor(package.SlurmExecutor):  # type: ignore[misc,name-defined]
            """submitit prints what sbatch complains of; here it goes to a file."""

            def _make_submission_command(self, submission_file_path: Path) -> list[str]:
                return ["sh", "-c", 'exec sbatch "$0" 2>"$1"', str(submission_file_path), str(errors)]

        with self._lock, _outside_of_jobs(package):
            executor = Executor(folder, max_num_timeout=self.settings.timeouts, python=self.settings.python)
            executor.update_parameters(**asked)
            try:
                job = executor.submit(onnode.run, str(folder))
            except (package.core.utils.FailedJobError, package.core.utils.FailedSubmissionError) as error:
                said = errors.read_text(errors="replace") if errors.exists() else ""
                raise Rejected(complaint(said or str(error), "sbatch")) from None
        return str(job.job_id)

    def look(self, job_id: str, folder: Path) -> Look:
        row = self.queue.row(job_id)
        if row is None:
            if self.queue.trouble:
                return Look("waiting", self.queue.trouble)
            since = self._unseen.setdefault(job_id, time.monotonic())
            if time.monotonic() - since < UNSEEN_S:
                return Look("waiting", "submitted, and not listed by Slurm yet")
            return Look("over", f"Slurm knows no job {job_id} any more")
        self._unseen.pop(job_id, None)
        if not row.over and NEVER.fullmatch(row.reason):
            self.cancel(job_id)
            return Look("over", str(row), f"its Slurm job {job_id} would wait for ever, and was cancelled: {row}")
        if not row.over and HELD.fullmatch(row.reason):
            self.cancel(job_id)
            return Look("over", f"Slurm job {job_id}: {row}")
        if not row.over:
            return Look("running" if row.nodes or row.state == "RUNNING" else "waiting", str(row))
        text = f"Slurm job {job_id}: {row}"
        match row.state:
            case "CANCELLED" if job_id not in self._cancelled:
                return Look("over", text, f"its Slurm job {job_id} was cancelled")
            case "OUT_OF_MEMORY":
                return Look("over", text, f"its Slurm job {job_id} ran out of memory: raise [executor] memory_gb")
        return Look("over", text)

    def cancel(self, job_id: str) -> None:
        self._cancelled.add(job_id)
        try:
            subprocess.run(["scancel", job_id], capture_output=True, timeout=60)
        except FileNotFoundError:
            raise missing("scancel") from None
        except subprocess.TimeoutExpired:
            pass  # the controller is busy; the job ends by its time limit, if not by this


@contextmanager
def _outside_of_jobs(package: Any) -> Iterator[None]:
    """Within, this process is in no Slurm job: one that is submitted from another would take over what that one asked for."""
    if "SLURM_JOB_ID" not in os.environ:
        yield  # with the user's own SBATCH_PARTITION and the like
        return
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    with package.helpers.clean_env():
        os.environ.update(kept)
        yield


class Rejected(Exception):
    """sbatch did not take a job; `line` is what it said."""

    def __init__(self, line: str):
        self.line = line
        super().__init__(line)
