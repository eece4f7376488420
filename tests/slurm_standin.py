"""Small stand-ins: a Slurm of one machine (sbatch, srun, squeue, sacct, scancel, scontrol), and a worker that counts steps.

`python slurm_standin.py sbatch …` is what a program of that name runs. All that it knows lies in $STANDIN_SLURM: a folder a
job, and files by which a test decides: hold (jobs wait), reject (what sbatch says no with), down (squeue gives no answer).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
NODE = "gpu3"


# -- the worker ----------------------------------------------------------------------------------------------------


def worker(spec_path: str) -> int:
    """Count to spec["steps"] in the folder spec["store"], from where the last one stopped, and log each step there.

    It waits at the steps spec["wait_at"] until the file go-<step> is there.
    """
    spec = json.loads(Path(spec_path).read_text())
    store = Path(spec["store"])
    state, log = store / "state", store / "steps"
    stop = []
    signal.signal(signal.SIGTERM, (lambda *_: None) if spec.get("deaf") else (lambda *_: stop.append(True)))
    print("a library says hello", flush=True)
    print("noise beside the events", file=sys.stderr, flush=True)
    step = int(state.read_text()) if state.exists() else 0
    while step < spec["steps"]:
        step += 1
        with open(log, "a") as file:
            file.write(f"{step} {os.getpid()}\n")
        tell({"event": "progress", "done": step, "total": spec["steps"], "text": f"step {step}"})
        while step in spec.get("wait_at", ()) and not (store / f"go-{step}").exists():
            if stop:
                break
            time.sleep(0.02)
        if stop:
            state.write_text("0" if spec.get("forgetful") else str(step))
            tell({"event": "stopped", "kept": f"step {step} of {spec['steps']}"})
            return 75
    if spec.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    (store / "result").write_text(f"{step} steps\n")
    tell({"event": "done", "pieces": [], "notes": {}, "made_with": {}})
    return 0


def tell(event: dict) -> None:
    print(json.dumps(event), flush=True)


# -- Slurm ---------------------------------------------------------------------------------------------------------


def home() -> Path:
    return Path(os.environ["STANDIN_SLURM"])


def sbatch(script: str) -> int:
    if (reject := home() / "reject").exists():
        print(reject.read_text(), file=sys.stderr)
        return 1
    job_id = 4242 + len(list(home().glob("job-*")))
    job = home() / f"job-{job_id}"
    job.mkdir()
    (job / "script").write_text(Path(script).read_text())
    (job / "environment").write_text(json.dumps(dict(os.environ)))
    say(job, "PENDING", "Priority")
    subprocess.Popen(
        [sys.executable, __file__, "supervise", str(job_id)],
        stdin=subprocess.DEVNULL,
        stdout=open(job / "out", "ab"),  # noqa: SIM115
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    print("sbatch: a friendly greeting of the site", file=sys.stderr)
    print(f"Submitted batch job {job_id}")
    return 0


def supervise(job_id: str) -> int:
    """slurmctld and slurmd, of one job."""
    job = home() / f"job-{job_id}"
    restarts = 0
    while True:
        while (home() / "hold").exists() and state(job) == "PENDING":
            time.sleep(0.02)
        if state(job) == "CANCELLED":
            return 0
        say(job, "RUNNING", "None", NODE)
        script = subprocess.Popen(
            ["bash", str(job / "script")],
            env=os.environ
            | {"SLURM_JOB_ID": job_id, "SLURM_RESTART_COUNT": str(restarts), "SLURM_JOB_NODELIST": NODE}
            | {
                "SLURM_NTASKS": "1",
                "SLURM_JOB_NUM_NODES": "1",
                "SLURM_NODEID": "0",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
            },
        )
        code = script.wait()
        if state(job) == "REQUEUED":
            restarts += 1
            say(job, "PENDING", "BeginTime")
        elif state(job) != "RUNNING":
            return 0  # cancelled, or its node is gone
        else:
            say(job, "COMPLETED" if code == 0 else "FAILED", "None" if code == 0 else "NonZeroExitCode", NODE)
            return 0


def srun(*arguments: str) -> int:
    job_id = os.environ["SLURM_JOB_ID"]
    command = list(arguments)
    files = {}
    while command[0].startswith("--"):
        flag = command.pop(0)
        if flag in ("--output", "--error"):
            files[flag] = command.pop(0).replace("%j", job_id).replace("%t", "0")
    (home() / f"job-{job_id}" / "task").write_text(str(os.getpid()))
    for flag, number in (("--output", 1), ("--error", 2)):
        os.dup2(os.open(files[flag], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    os.execvp(command[0], command)


def squeue(*arguments: str) -> int:
    if (down := home() / "down").exists():
        print(down.read_text(), file=sys.stderr)
        return 1
    asked("squeue")
    assert "--noheader" in arguments and "--format=%i|%T|%r|%N" in arguments, arguments
    for job in sorted(home().glob("job-*")):
        if not (job / "forgotten").exists():
            now, reason, nodes = (job / "state").read_text().split("|")
            print(f"{job.name[4:]}|{now}|{reason}|{nodes}")
    return 0


def sacct(*arguments: str) -> int:
    asked("sacct")
    job_id = next(one for one in arguments if one.startswith("--jobs=")).removeprefix("--jobs=")
    job = home() / f"job-{job_id}"
    if (home() / "no-accounting").exists():
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    if job.exists():
        now, _, nodes = (job / "state").read_text().split("|")
        print(f"{job_id}|{'CANCELLED by 1000' if now == 'CANCELLED' else now}|{nodes or 'None assigned'}")
    return 0


def scancel(job_id: str) -> int:
    job = home() / f"job-{job_id}"
    if state(job) in ("PENDING", "RUNNING"):
        running = state(job) == "RUNNING"
        say(job, "CANCELLED", "None", NODE if running else "")
        if running:
            hit(job, signal.SIGTERM)
    return 0


def scontrol(verb: str, job_id: str) -> int:
    assert verb == "requeue"
    say(home() / f"job-{job_id}", "REQUEUED", "None")
    return 0


def asked(what: str) -> None:
    with open(home() / "questions", "a") as log:
        log.write(f"{what}\n")


def say(job: Path, now: str, reason: str = "None", nodes: str = "") -> None:
    part = job / f"state.{os.getpid()}"
    part.write_text(f"{now}|{reason}|{nodes}")
    part.replace(job / "state")


def state(job: Path) -> str:
    return (job / "state").read_text().split("|")[0]


def hit(job: Path, number: int) -> None:
    try:
        os.kill(int((job / "task").read_text()), number)
    except (OSError, ValueError):
        pass


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
