"""A stand-in for a cluster: each job is a process of this machine, in a node's world of its own, which shares the store alone.

A world's dodo.py installs it in the place of Slurm. `$NODES` is the folder of the nodes: each job gets one of its own there,
with its home and its cache, unless [executor] names a cache. `node.json` in it says what a node is: {"state_seconds": 0.2}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabuild.executors import choose
from lorabuild.executors.protocol import Resources, Status, ending

DODO = """\
import process_executor
process_executor.install()
from lorabuild.graph import DOIT_CONFIG, task_lorabuild
"""
# What a node's process inherits: where its Python is, and how the store is reached.
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "STANDIN", "HF_HUB_OFFLINE")


def install() -> None:
    choose.MODULES["slurm"] = choose.PACKAGES["slurm"] = "process_executor"


def executor(settings: Mapping[str, Any], root: Path) -> Processes:
    return Processes(Path(os.environ["NODES"]))


class Processes:
    """A handle is the name of a node's folder: spec, events, log, pid, and the exit code once it has ended."""

    def __init__(self, nodes: Path):
        self.nodes = nodes
        self._read: dict[str, int] = {}
        self._started: dict[str, subprocess.Popen] = {}

    def submit(self, spec: Mapping[str, Any], resources: Resources) -> str:
        handle = f"{spec['name'].replace(':', '-').replace('@', '-')}-{uuid.uuid4().hex[:8]}"
        node = self.nodes / handle
        (node / "home").mkdir(parents=True)
        said = self.nodes / "node.json"
        spec = {**spec, **(json.loads(said.read_text()) if said.exists() else {})}
        (node / "spec.json").write_text(json.dumps(spec))
        (node / "resources.json").write_text(json.dumps(vars(resources)))
        names = {name for name in os.environ if name in INHERITED or name.startswith("AWS_")}
        environment = {name: os.environ[name] for name in names} | {"HOME": str(node / "home")}
        with open(node / "events", "w") as events, open(node / "log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lorabuild.worker", str(node / "spec.json")],
                cwd=node / "home",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=events,
                stderr=log,
                start_new_session=True,
            )
        (node / "pid").write_text(str(process.pid))
        self._started[handle] = process
        return handle

    def poll(self, handle: str) -> Status:
        node = self.nodes / handle
        if not (node / "pid").exists():
            return Status("lost", (), "nobody knows it")
        gone = self._gone(handle)
        lines = (node / "events").read_text().split("\n")[:-1]
        new = [json.loads(line) for line in lines[self._read.get(handle, 0) :] if line.startswith("{")]
        self._read[handle] = len(lines)
        if ending(new):
            return Status("ended", new)
        if gone:
            return Status("lost", new, "the node is gone")
        if not new:
            time.sleep(0.05)
        return Status("running", new)

    def cancel(self, handle: str) -> None:
        self._signal(handle, signal.SIGTERM)

    def logs(self, handle: str) -> str:
        log = self.nodes / handle / "log"
        return log.read_text() if log.exists() else ""

    def _gone(self, handle: str) -> bool:
        if process := self._started.get(handle):
            return process.poll() is not None
        pid = (self.nodes / handle / "pid").read_text()
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    def _signal(self, handle: str, number: int) -> None:
        try:
            os.kill(int((self.nodes / handle / "pid").read_text()), number)
        except (OSError, ValueError):
            pass
