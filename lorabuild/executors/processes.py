"""To try a cluster out without one: jobs as processes of this machine (`local`), or in this very process (`debug`)."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from lorabuild.executors import onnode
from lorabuild.executors.clusters import MINUTES, Look, Settings, submitit
from lorabuild.executors.protocol import Resources
from lorabuild.workers.slots import cuda_devices


class Local:
    """submitit's local executor: a process that starts the job, tells it of its time limit, and starts it once more.

    It places nothing: all jobs run at once, on the same GPUs. For tests, and for trying out what a cluster will do.
    """

    settle_s = 0.0

    def __init__(self, settings: Settings):
        self.settings = settings
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, folder: Path, name: str, resources: Resources) -> str:
        package = submitit()
        settings, started = self.settings, self._processes
        minutes = resources.minutes or MINUTES

        class Executor(package.LocalExecutor):  # type: ignore[misc,name-defined]
            """In a session of its own, so that Ctrl-C at the driver's terminal is not for it, and with a log of its own."""

            def _submit_command(self, command: str) -> Any:
                controller = [sys.executable, "-m", "submitit.local._local", str(self.folder)]
                script = "\n".join([*settings.setup, f"exec {shlex.join(controller)}"])
                with open(folder / "controller.log", "ab") as log:
                    process = subprocess.Popen(
                        ["bash", "-c", script] if settings.setup else controller,
                        env=os.environ | _environment(command, minutes, settings, resources),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                started[str(process.pid)] = process
                return package.LocalJob(folder=self.folder, job_id=str(process.pid), process=process)

        executor = Executor(folder, max_num_timeout=settings.timeouts, python=settings.python)
        executor.update_parameters(timeout_min=minutes)
        return str(executor.submit(onnode.run, str(folder)).job_id)

    def look(self, job_id: str, folder: Path) -> Look:
        process = self._processes.get(job_id)
        alive = process.poll() is None if process else _is_controller(job_id, folder)
        return Look("running") if alive else Look("over", f"process {job_id} has ended")

    def cancel(self, job_id: str) -> None:
        process = self._processes.get(job_id)
        if process is None or process.poll() is None:
            try:
                os.kill(int(job_id), signal.SIGTERM)  # it passes it on
            except (ProcessLookupError, PermissionError):
                pass


def _environment(command: str, minutes: float, settings: Settings, resources: Resources) -> dict[str, str]:
    """What submitit's controller reads."""
    return {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_COMMAND": command,
        "SUBMITIT_LOCAL_TIMEOUT_S": str(int(60 * minutes)),
        "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(settings.signal_delay_s),
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_STDERR_TO_STDOUT": "",
        "SUBMITIT_LOCAL_WITH_SHELL": "",
        "CUDA_VISIBLE_DEVICES": ",".join(cuda_devices()[: resources.gpus]),
    }


def _is_controller(job_id: str, folder: Path) -> bool:
    """Whether a process with this number is that job's: the number may have gone to another one since."""
    if Path("/proc/self/cmdline").exists():
        try:
            said = Path(f"/proc/{int(job_id)}/cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            return False
    else:  # macOS
        said = subprocess.run(["ps", "-ww", "-o", "args=", "-p", job_id], capture_output=True, text=True).stdout
    return "submitit.local._local" in said and str(folder) in said


class Debug:
    """submitit's debug executor: the first poll runs the job to its end, one at a time."""

    settle_s = 0.0

    def __init__(self, settings: Settings):
        self._jobs: dict[str, Any] = {}
        self._lock = threading.Lock()  # submitit swaps the environment meanwhile

    def submit(self, folder: Path, name: str, resources: Resources) -> str:
        job = submitit().DebugExecutor(folder).submit(onnode.run, str(folder))
        job_id = folder.name  # submitit's own is an address in memory, which another job may get
        self._jobs[job_id] = job
        return job_id

    def look(self, job_id: str, folder: Path) -> Look:
        with self._lock:
            if job := self._jobs.pop(job_id, None):
                job.results()
        return Look("over", "it ran in this process")

    def cancel(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
