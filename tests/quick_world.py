"""The repository of the kills, with data sets that are really read: a build takes a second, and a job can be held up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import killing
from world import World


@dataclass(frozen=True)
class Done:
    """What a build came to."""

    code: int
    said: str
    built: set[str]


def made(root: Path) -> Path:
    killing.make(root)
    (root / "dodo.py").write_text(killing.DODO.replace('"dataset", ', ""))
    World(root).picture("images/1.png", 1)
    return root


def golden(root: Path) -> killing.Golden:
    """An undisturbed build of it."""
    assert build(made(root)).code == 0
    return killing.Golden(killing.built_files(root), killing.keys(root), 0, killing.locks(root))


def build(root: Path, *args: str, **env: str) -> Done:
    log = killing.latest(root)
    process = killing.start(root, *args, STANDIN_SECONDS="0", **env)
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out + err, killing.events(root, "built", log))


@contextmanager
def held_up(root: Path, job: str, *args: str) -> Iterator[tuple[Popen, Path]]:
    """A build that has come to `job` and goes on when the file, which does not exist yet, is touched."""
    gate = root.parent / f"gate-{root.name}"
    reached = Path(f"{gate}.reached")
    process = killing.start(root, *args, STANDIN_SECONDS="0", STANDIN_GATE=f"{job} {gate}")
    deadline = time.monotonic() + 60
    while not reached.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    try:
        yield process, gate
    finally:
        if process.poll() is None:
            killing.kill(process, "all")
        process.wait()
        for path in (gate, reached):
            path.unlink(missing_ok=True)
