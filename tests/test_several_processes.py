"""A build whose training takes two processes and is watched, as its user sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from world import World

pytestmark = pytest.mark.slow

MORE = """\
processes = 2
gradient_accumulation_steps = 2
validation_split = 0.25
validate_every_n_steps = 1
save_every_n_steps"""


def world(root: Path, slots: int) -> World:
    made = World(root)
    made.write("lorabuild.toml", f'[bases.tiny]\nbuiltin = "tiny-sdxl"\n[slots]\ngpu = {slots}\ncpu = 2\n')
    made.project(steps=3)
    edit(made, "save_every_n_steps", MORE)
    return made


def edit(made: World, old: str, new: str) -> None:
    manifest = made.root / "projects/ember/lora.toml"
    manifest.write_text(manifest.read_text().replace(old, new))


def test_a_watched_training_of_two_processes_is_that_of_one(tmp_path: Path):
    two = world(tmp_path / "two", slots=2)
    built = two.doit("train:ember")
    assert built.code == 0, built.out + built.err
    assert "recipe.processes" not in built.out
    logs = list((two.root / "build/ember/logs").glob("*/events.out.tfevents.*"))
    assert len(logs) == 1
    log = [json.loads(line) for line in (two.root / "build/ember/train.jsonl").read_text().splitlines()]
    assert [record["when"] for record in log if record["event"] == "held_out"] == [
        "before",
        "during",
        "during",
        "after",
    ]
    edit(two, "processes = 2", "processes = 1")
    edit(two, "validate_every_n_steps = 1", 'log_with = "tensorboard"')
    assert two.doit("train:ember").events == [], "how it is trained and watched builds nothing"

    one = world(tmp_path / "one", slots=1)
    built = one.doit("train:ember")
    assert "recipe.processes: 2, but there is room for 1 ([slots] gpu, or devices): 1 at work" in built.out
    weights = [(each.root / "build/ember/ember.safetensors").read_bytes() for each in (two, one)]
    assert weights[0] == weights[1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes as Linux shows them")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_no_process_outlives_a_build(tmp_path: Path, number: int):
    made = world(tmp_path / "made", slots=2)
    edit(made, "max_train_steps = 3", "max_train_steps = 500")
    build = subprocess.Popen(
        [sys.executable, "-m", "doit", "train:ember"],
        cwd=made.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = made.root / ".lorabuild/scratch"
    waited = time.monotonic() + 200
    while not list(state.glob("*/scratch/state")):
        assert build.poll() is None and time.monotonic() < waited
        time.sleep(0.2)
    assert len(ranks(made.root)) == 1
    os.kill(build.pid, number)
    build.wait(60)
    waited = time.monotonic() + 60
    while ranks(made.root):
        assert time.monotonic() < waited, "a process was left behind"
        time.sleep(0.2)


def ranks(root: Path) -> list[int]:
    """The processes beside the first of trainings in this repository."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"lorabuild.rank" in (folder / "cmdline").read_bytes() and Path(os.readlink(folder / "cwd")) == root:
                found.append(int(folder.name))
        except OSError:
            pass  # it has ended meanwhile
    return found
