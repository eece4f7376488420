"""Try recipes out without weights and images: adapter, optimizer and schedule, made dry in a process that has torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lorabuild
from lorabuild.checks.reckoned import reckoned
from lorabuild.components import FOLDERS, component_files
from lorabuild.errors import JobError
from lorabuild.findings import Finding, found
from lorabuild.hashing import digest_bytes, digest_json
from lorabuild.header import read_header
from lorabuild.state import State

HERE = Path(lorabuild.__file__).parent
RATE = "LB076"
CONFIGS = ("unet", "te1", "te2")
SECONDS = 300  # for all recipes: torch and diffusers take some three to load, a recipe one

Tried = Mapping[str, Any]  # what the other process says of a recipe


@dataclass(frozen=True)
class Task:
    """A recipe to try, on a base's architecture: the folder's, or the built-in one."""

    recipe: Mapping[str, Any]
    base: Path | None

    @property
    def plain(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "base": None if self.base is None else str(self.base)}


class Trials:
    """The trials of all projects. A usual recipe is reckoned by tables; others whose outcome is not remembered are tried,
    together, in one process beside this one: it alone imports torch."""

    def __init__(self, tasks: Mapping[str, Task], state: State):
        self._state = state
        self._known: dict[str, Tried] = {
            name: told for name, task in tasks.items() if (told := reckoned(task.recipe, task.base))
        }
        others = {name: task for name, task in tasks.items() if name not in self._known}
        tools = _tools() if others else ""
        self._keys = {name: f"check recipe {digest_json([tools, *_identity(task)])}" for name, task in others.items()}
        self._known |= {name: json.loads(text) for name, key in self._keys.items() if (text := state.get(key))}
        self._unknown = [name for name in tasks if name not in self._known]
        self._process = _start([tasks[name].plain for name in self._unknown]) if self._unknown else None

    def outcome(self) -> dict[str, Tried]:
        """What was found, by project. What went well is remembered; what did not is tried again next time."""
        if self._process is None:
            return self._known
        tried = _ended(self._process, len(self._unknown))
        for name, one in zip(self._unknown, tried, strict=True):
            self._known[name] = one
            if not one["faults"]:
                self._state.put(self._keys[name], json.dumps(one))
        return self._known

    def close(self) -> None:
        """End the other process if it still runs: nobody waits for it any more."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def tried_findings(tried: Tried, place: Callable[[str], tuple[str, int]]) -> Iterator[Finding]:
    """`place` gives the file and line of a key of the manifest."""
    said = [*tried["faults"], *((RATE, note) for note in tried["notes"])]
    for code, message in said:
        key = message.partition(":")[0]
        file, line = place(key if key.startswith(("recipe.", "base.")) else "recipe.network_module")
        yield found(code, file, message, line)


def _start(tasks: Sequence[Mapping[str, Any]]) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lorabuild.checks.dry"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(tasks))
    process.stdin.flush()
    return process


def _ended(process: subprocess.Popen[str], count: int) -> list[Tried]:
    """What it said of each of its `count` tasks; of those that it did not come to, that it died."""
    try:
        out, err = process.communicate(timeout=SECONDS)
        said = (err.strip().splitlines() or ["it said nothing"])[-1]
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        said = f"not done after {SECONDS} s"
    tried = [json.loads(line) for line in out.splitlines()]
    lost = {"adapter": None, "faults": [("LB070", f"recipe: trying it out ended early: {said[:300]}")], "notes": []}
    return [*tried, *[lost] * (count - len(tried))]


def _identity(task: Task) -> list[Any]:
    """All of a task that its outcome hangs on."""
    if task.base is None:
        return [task.recipe, None]
    return [task.recipe, _shapes(task.base)]


def _shapes(base: Path) -> str:
    """A digest of what is read of a base to try a recipe out: configurations, and the names and shapes of weights."""
    try:
        configs = [base / FOLDERS[name] / "config.json" for name in CONFIGS] if base.is_dir() else []
        read = [digest_bytes(path.read_bytes()) for path in configs]
        headers = [
            read_header(file)
            for file in sorted({one for name in CONFIGS for one in component_files(base, name)})
            if file.suffix == ".safetensors"
        ]
        tensors = [[name, list(info.shape)] for header in headers for name, info in sorted(header.tensors.items())]
        return digest_json([read, tensors, [dict(header.metadata) for header in headers]])
    except (OSError, JobError):
        return "none"


def _tools() -> str:
    """A digest of our own code that is tried, and of the names and versions of all packages that are installed."""
    code = [
        digest_bytes(path.read_bytes())
        for name in ("nn", "lora", "checks")
        for path in sorted((HERE / name).rglob("*.py"))
    ]
    packages = sorted({name for folder in sys.path for name in _listed(folder) if name.endswith(".dist-info")})
    return digest_json([code, packages])


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder or ".")
    except OSError:
        return []
