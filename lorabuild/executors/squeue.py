"""What Slurm says of this user's jobs: `squeue` for all of them at once and not too often, `sacct` for one that it has forgotten."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lorabuild.errors import JobError

EVERY_S = 10.0  # one squeue for all jobs; administrators ask for no more than that
TIMEOUT_S = 60.0

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


@dataclass(frozen=True)
class Row:
    """One job in Slurm's words: state "PENDING", reason "Priority", nodes "gpu3"; "" where there is none."""

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def over(self) -> bool:
        return self.state not in WAITING | RUNNING

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else ""
        why = f" ({self.reason})" if self.reason and self.state in WAITING else ""
        return f"{self.state}{where}{why}"


def rows_of_squeue(text: str) -> dict[str, Row]:
    """Lines of `squeue --format=%i|%T|%r|%N`, by job id."""
    found = {}
    for line in text.splitlines():
        job_id, state, reason, nodes = (part.strip() for part in [*line.split("|"), "", "", ""][:4])
        if job_id.isdigit() and state:
            found[job_id] = Row(state, "" if reason in ("None", "(null)") else reason, _nodes(nodes))
    return found


def row_of_sacct(text: str, job_id: str) -> Row | None:
    """The last line on a job of `sacct --parsable2 --format=JobID,State,NodeList`; a requeued one may have several."""
    found = None
    for line in text.splitlines():
        name, state, nodes = (part.strip() for part in [*line.split("|"), "", ""][:3])
        if name == job_id and state:
            word, _, by = state.partition(" ")  # "CANCELLED by 1000"
            found = Row(word, by, _nodes(nodes))
    return found


def _nodes(text: str) -> str:
    return "" if text in ("None assigned", "(null)", "n/a") else text


class Queue:
    """Rows of jobs, at most `every_s` old. May be asked from several threads; one of them asks Slurm."""

    def __init__(self, every_s: float = EVERY_S):
        self.every_s = every_s
        self.trouble = ""  # why squeue does not answer: "slurm_load_jobs error: Unable to contact slurm controller …"
        self._rows: dict[str, Row] = {}
        self._asked = float("-inf")
        self._sought: dict[str, float] = {}  # job id -> when it was first asked for, or last looked for by sacct
        self._lock = threading.Lock()

    def row(self, job_id: str) -> Row | None:
        """What is known of a job; None: Slurm does not know of it (yet), or nobody answers, then `trouble` says so.

        Raises JobError.
        """
        with self._lock:
            now = time.monotonic()
            sought = self._sought.setdefault(job_id, now)
            if now - self._asked >= self.every_s:
                self._ask()
            known = self._rows.get(job_id)
            # One that was submitted a moment ago is not listed: the next squeue will tell.
            if known or self.trouble or self._asked <= sought or now - sought < self.every_s:
                return known
            self._sought[job_id] = now
        row = self._long_ago(job_id)
        if row and row.over:
            with self._lock:
                self._rows.setdefault(job_id, row)
        return row

    def _ask(self) -> None:
        # All states: jobs that have ended stay for some minutes (MinJobAge). All of the user's: an unknown id would be an error.
        said = _said("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%r|%N")
        self._asked = time.monotonic()
        self.trouble = said if isinstance(said, str) else ""
        if isinstance(said, bytes):
            ended = {job_id: row for job_id, row in self._rows.items() if row.over}
            self._rows = ended | rows_of_squeue(said.decode(errors="replace"))

    def _long_ago(self, job_id: str) -> Row | None:
        """By the accounting, where a cluster has one."""
        said = _said(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList", f"--jobs={job_id}"
        )
        return row_of_sacct(said.decode(errors="replace"), job_id) if isinstance(said, bytes) else None


def _said(program: str, *arguments: str) -> bytes | str:
    """What a program writes; as text, its first complaint."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        if program == "squeue":
            raise missing(program) from None
        return f"{program}: not found"
    except subprocess.TimeoutExpired:
        return f"{program}: no answer within {TIMEOUT_S:g} s"
    return done.stdout if done.returncode == 0 else complaint(done.stderr.decode(errors="replace"), program)


def complaint(text: str, program: str) -> str:
    """The first line of an error, without the program's own prefix: "Invalid partition name specified"."""
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it failed without a word")
    for prefix in (f"{program}: ", "error: "):
        line = line.removeprefix(prefix)
    return line


def missing(program: str) -> JobError:
    return JobError(
        f'{program}: not found: [executor] kind = "slurm" needs a machine that submits to Slurm; '
        '[executor.slurm] cluster = "local" tries it out without'
    )
