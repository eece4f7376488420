"""Stages that stand in for the real ones: they make in milliseconds what the engine needs, and misbehave when told to.

A world's dodo.py installs them; workers find them on PYTHONPATH. `$STANDIN` is a folder: `plan.json` says what a job does
instead of succeeding, and each job leaves a line there when it begins and one when it ends.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from world import World

from lorabuild.errors import Interrupted, JobError
from lorabuild.hashing import digest_json
from lorabuild.stage import is_family
from lorabuild.stages import STAGES
from lorabuild.stages.base import COMPONENTS_FILE
from lorabuild.writing import write_body

DODO = """\
import standin
standin.install()
from lorabuild.graph import DOIT_CONFIG, task_lorabuild
"""
COMPONENTS = ("vae", "unet", "te1", "te2", "tokenizer1", "tokenizer2")
QUICK = ("base", "norms", "latents", "train", "spectrum", "resize", "chop", "samples")  # the data set is read as ever


def install(names: tuple[str, ...] = QUICK) -> None:
    for name in names:
        STAGES[name] = replace(STAGES[name], run=quick)


def quick(job: Any, workspace: Any, progress: Any) -> None:
    """Do what the plan says, then write small outputs that depend on params and inputs alone."""
    did = json.loads((_folder() / "plan.json").read_text()).get(job.name, "")
    _note("begin", job.name)
    try:
        what, _, number = did.partition(" ")
        ACTS[what](float(number or 0), workspace, progress)
    finally:
        _note("end", job.name)
    digest = digest_json([job.stage, job.params, dict(workspace.digests)])
    for role in (one for one in job.outputs if not is_family(one)):
        _write(workspace.output(role), role, digest)
    for role in job.snapshots:
        _write(workspace.output(role), role, digest)


def _write(path: Path, role: str, digest: str) -> None:
    if role == COMPONENTS_FILE:
        path.write_text(json.dumps({name: digest_json([digest, name]) for name in COMPONENTS}))
    elif role == "facts.json":
        path.write_text("{}")
    elif role in ("weights", "latents", "spectrum") or role.startswith("step/") or role.endswith(".safetensors"):
        write_body(path, [("lora_unet_output_blocks_1_1_proj_in.alpha", "F32", (1,), digest.encode()[:4])])
    else:
        path.write_text(f"{role} {digest}")


def _succeed(seconds: float, workspace: Any, progress: Any) -> None:
    time.sleep(seconds)


def _fail(seconds: float, workspace: Any, progress: Any) -> None:
    time.sleep(seconds)
    raise JobError("step 3: the loss is not finite (nan): lower unet_lr")


def _crash(seconds: float, workspace: Any, progress: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _orphan(seconds: float, workspace: Any, progress: Any) -> None:
    """Dies, and leaves a child that holds all its files open."""
    from multiprocessing import get_context

    get_context("fork").Process(target=time.sleep, args=(600,)).start()
    os.kill(os.getpid(), signal.SIGKILL)


def _fail_after(count: float, workspace: Any, progress: Any) -> None:
    """Fails when the latents of so many projects are there."""
    _wait_until(lambda lines: len(_jobs(lines, "end", "latents")) >= count)
    _fail(0, workspace, progress)


def _meet(count: float, workspace: Any, progress: Any) -> None:
    """Waits until so many trainings have run at once."""
    _wait_until(lambda lines: most_at_once(lines, "train") >= count)


def _beside_chop(count: float, workspace: Any, progress: Any) -> None:
    """Waits until a LoRA is chopped, unless it is the first training: there is none to chop."""
    _wait_until(lambda lines: len(_jobs(lines, "begin", "train")) == 1 or _jobs(lines, "begin", "chop"))


def _wait_until(true: Callable[[list[dict[str, Any]]], object]) -> None:
    """Wait until that is true of the lines, or for so long that it never will be."""
    deadline = time.monotonic() + 60
    while not true(_lines(_folder())) and time.monotonic() < deadline:
        time.sleep(0.02)


def _fault(seconds: float, workspace: Any, progress: Any) -> None:
    raise ValueError("a fault\nof two lines")


def _hang(seconds: float, workspace: Any, progress: Any) -> None:
    """In one call of C, with children: one of the shell's kind, one of multiprocessing's."""
    from multiprocessing import get_context

    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    get_context("fork").Process(target=time.sleep, args=(600,)).start()
    _note("hangs", "")
    ctypes.CDLL(None).sleep(600)


def _train(steps: float, workspace: Any, progress: Any) -> None:
    """Updates of 50 ms, with a state that is taken up again."""
    state = workspace.scratch / "state"
    first = int(state.read_text()) if state.exists() else 0
    workspace.note(resumed_at=first)
    for step in range(first, int(steps)):
        if workspace.stopping():
            state.write_text(str(step))
            raise Interrupted(f"step {step} of {int(steps)}")
        time.sleep(0.05)
        progress(step + 1, int(steps), "")
        if step == first:
            _note("trains", "")


def _deaf(seconds: float, workspace: Any, progress: Any) -> None:
    """Asks once whether it should stop, and then works on."""
    workspace.stopping()
    _note("hangs", "")
    time.sleep(600)


def _chatter(lines: float, workspace: Any, progress: Any) -> None:
    for number in range(int(lines)):
        workspace.warn(f"{number:04} " + "x" * 300)
        print("printed by a job")


ACTS = {
    "": _succeed,
    "sleep": _succeed,
    "fail": _fail,
    "fail-after": _fail_after,
    "meet": _meet,
    "beside-chop": _beside_chop,
    "crash": _crash,
    "orphan": _orphan,
    "fault": _fault,
    "hang": _hang,
    "train": _train,
    "deaf": _deaf,
    "chatter": _chatter,
}


def _folder() -> Path:
    return Path(os.environ["STANDIN"])


def _note(what: str, job: str) -> None:
    line = {"what": what, "job": job, "at": time.time(), "pid": os.getpid(), "group": os.getpgrp()}
    line |= {"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS")}
    with open(_folder() / "lines.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def _lines(folder: Path) -> list[dict[str, Any]]:
    """What is noted there, but for a line that is just being written."""
    path = folder / "lines.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def _jobs(lines: list[dict[str, Any]], what: str, stage: str) -> set[str]:
    return {line["job"] for line in lines if line["what"] == what and line["job"].startswith(f"{stage}:")}


def most_at_once(lines: list[dict[str, Any]], stage: str = "") -> int:
    """How many jobs of a stage ran at the same time, at most."""
    order = sorted(
        (line["at"], 1 if line["what"] == "begin" else -1)
        for line in lines
        if line["what"] in ("begin", "end") and line["job"].startswith(stage)
    )
    running = most = 0
    for _, change in order:
        running += change
        most = max(most, running)
    return most


# for tests


@dataclass
class Stage:
    """A world of stand-in stages. Its projects differ in their settings, so that none shares its results."""

    world: World

    def __init__(self, root: Path, projects: int = 1, slots: str = "", **plan: str):
        self.world = World(root / "repository")
        self.world.write("dodo.py", DODO)
        self.world.write("lorabuild.toml", f"[slots]\n{slots}\n")
        for number in range(projects):
            self.world.manifest(f"p{number}", seed=number)
            self.world.picture(f"projects/p{number}/images/1.png", number)
        self.folder = root / "standin"
        self.folder.mkdir()
        self.plan(**plan)

    def copy(self, root: Path) -> Stage:
        """The same elsewhere, with what was built."""
        shutil.copytree(self.folder.parent, root, symlinks=True)
        found = copy.copy(self)
        found.world, found.folder = World(root / "repository"), root / "standin"
        return found

    def plan(self, **plan: str) -> None:
        """What jobs do: `train_p0="fail"`."""
        named = {name.replace("_", ":", 1): what for name, what in plan.items()}
        (self.folder / "plan.json").write_text(json.dumps(named))

    @property
    def env(self) -> dict[str, str]:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
        return {"STANDIN": str(self.folder), "PYTHONPATH": path}

    def doit(self, *args: str, **env: str) -> Any:
        return self.world.doit(*args, **self.env, **env)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """A build in the background, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "doit", *args],
            cwd=self.world.root,
            env=os.environ | {"NO_COLOR": "1"} | self.env,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lines(self, what: str = "") -> list[dict[str, Any]]:
        return [line for line in _lines(self.folder) if what in ("", line["what"])]

    def wait_for(self, what: str, count: int = 1, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while len(self.lines(what)) < count:
            assert time.monotonic() < deadline, f"{what} did not come: {self.lines()}"
            time.sleep(0.02)

    def at_once(self, stage: str = "") -> int:
        """How many jobs of a stage ran at the same time, at most."""
        return most_at_once(self.lines(), stage)

    def survivors(self) -> list[int]:
        """Processes in the groups of the workers that are still there."""
        groups = {line["group"] for line in self.lines()}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[2]) in groups and stat[0] != "Z":
                found.append(int(entry.name))
        return found
