"""What submitit calls on a node: run the worker of one job, and have it keep its state where the node is wanted back."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabuild.executors.attempts import LOG, PLAN, SPEC, attempts, next_attempt, parsed
from lorabuild.executors.protocol import ending
from lorabuild.signals import ended_by

TERM_S = 25.0  # Slurm's KillWait, after which a cancelled job is killed, is 30 s where nobody has set it
LINGER_S = 3.0  # SIGTERM may be a preemption's, whose SIGUSR2 follows at once
EARLY_S = 90.0  # Slurm may signal a minute early, and the job began before this process
NAP_S = 0.1


def run(folder: str) -> int:
    """Run the job of a folder, and return its worker's exit code. This function and the folder's path are all that is pickled."""
    global _attempt
    _attempt = attempt = Attempt(Path(folder))
    try:
        return attempt.wait()
    finally:
        attempt.close()
        _attempt = None


def again(folder: str) -> Any:
    """submitit's checkpoint, called by its handler of SIGUSR2: the job as it is to be queued once more; None: it is over."""
    from submitit.helpers import DelayedSubmission

    if _attempt is not None and not _attempt.give_way():
        return None
    return DelayedSubmission(run, folder)


run.checkpoint = again  # type: ignore[attr-defined]  # where submitit looks for it
_attempt: Attempt | None = None


class Attempt:
    """One start of a job's worker: its events go to a file of this attempt, what else it writes to the job's log."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.plan: Mapping[str, Any] = json.loads((folder / PLAN).read_text())
        self.began = time.monotonic()
        self.told: float | None = None  # when it was asked to stop
        number, events = next_attempt(folder)
        self.events = Path(events.name)
        with events, open(folder / LOG, "ab") as log:
            log.write(f"attempt {number} on {os.uname().nodename}\n".encode())
            log.flush()
            self.worker = subprocess.Popen(
                [*(self.plan["command"] or [sys.executable, "-m", "lorabuild.worker"]), str(folder / SPEC)],
                stdin=subprocess.DEVNULL,
                stdout=events,
                stderr=log,
                start_new_session=True,
                preexec_fn=_tied,
            )
        if _main_thread():  # submitit passes by SIGTERM
            signal.signal(signal.SIGTERM, lambda number, frame: self.ask())

    def wait(self) -> int:
        """Until it has ended. One that was asked to stop and does not is killed."""
        while (code := self.worker.poll()) is None:
            if self.told and time.monotonic() - self.told > TERM_S:
                self._kill()
            time.sleep(NAP_S)
        self._note(f"the worker has ended: {ended_by(code)}")
        while self.told and time.monotonic() - self.told < LINGER_S:
            time.sleep(NAP_S)
        return code

    def ask(self) -> None:
        """Ask the worker to keep what it has and to stop, once."""
        if self.told is None:
            self.told = time.monotonic()
            try:
                os.kill(self.worker.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass

    def give_way(self) -> bool:
        """Have the worker end within the time that is left; is there something to go on with elsewhere?

        Runs in a signal's handler, in the midst of wait(): Popen's methods may hold their lock there.
        """
        self.ask()
        grace_s = 0.8 * self.plan["signal_delay_s"]  # the rest is for the requeue itself
        until = time.monotonic() + grace_s
        while self._alive() and time.monotonic() < until:
            time.sleep(NAP_S)
        if self._alive():
            self._note(f"the worker did not stop within {grace_s:g} s and is killed")
            self._kill()
        last = ending(_events(self.events))
        if last and last["event"] != "stopped":
            return False
        if last and self._timed_out() and last.get("kept", "") in ("", self._kept_before()):
            minutes = f"{round(self.plan['minutes'], 2):g}"
            line = f"its time limit ({minutes} min) is over before it came any further: raise [executor] minutes"
            self._append(self.events, json.dumps({"event": "failed", "lines": [line]}))
            return False
        return True

    def close(self) -> None:
        """Nothing of it stays, however this ends."""
        if self.worker.poll() is None:
            self._note("the worker is killed")
        self._kill()

    def _alive(self) -> bool:
        """Whether it runs still; leaves its exit code for wait()."""
        try:
            return os.waitid(os.P_PID, self.worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def _kill(self) -> None:
        try:
            os.killpg(self.worker.pid, signal.SIGKILL)  # also what it has started
        except (ProcessLookupError, PermissionError):
            pass

    def _timed_out(self) -> bool:
        """Whether SIGUSR2 came for the time limit, not for a preemption: nobody says which."""
        due_s = self.plan["minutes"] * 60 - self.plan["signal_delay_s"] - EARLY_S
        return time.monotonic() - self.began >= due_s

    def _kept_before(self) -> str | None:
        """What the attempt before this one kept; None if there was none, or if it says nothing."""
        before = [path for path in attempts(self.folder) if path.name < self.events.name]
        last = ending(_events(before[-1])) if before else None
        return last.get("kept", "") if last else None

    def _note(self, line: str) -> None:
        self._append(self.folder / LOG, line)

    def _append(self, path: Path, line: str) -> None:
        with open(path, "a") as file:
            file.write(f"{line}\n")


def _events(path: Path) -> list[Any]:
    return parsed(path.read_bytes().splitlines())


def _main_thread() -> bool:
    import threading  # `debug` calls this in a thread of the driver

    return threading.current_thread() is threading.main_thread()


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _tied() -> None:
    """In the worker, before it begins: it ends with this process, and is deaf to what Slurm may send to all of a job's processes."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
