"""A repository to check: one project with nothing wrong, and no process that loads torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from bad_images import drawn
from world import World

from lorabuild.checks import repository
from lorabuild.checks.repository import Report, check
from lorabuild.session import state_of

MANIFEST = """\
[project]
base = "tiny"
kind = "character"
trigger = "ember"

[dataset]
resolution = [64, 64]
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 32
[[dataset.subset]]
image_dir = "images"

[recipe]
max_train_steps = 4
"""


class NoTrials:
    """Stands for the process that has torch, where a test is not about it."""

    def __init__(self, tasks: Any, state: Any):
        self.tasks = tasks

    def outcome(self) -> dict[str, Any]:
        return {name: {"adapter": None, "faults": [], "notes": []} for name in self.tasks}

    def close(self) -> None:
        pass


def without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "Trials", NoTrials)


def one_project(world: World) -> World:
    """Put in a project with nothing wrong: two pictures with captions."""
    world.write("projects/ember/lora.toml", MANIFEST)
    for number in (1, 2):
        picture(world, f"{number}.png", number)
        world.write(f"projects/ember/images/{number}.txt", f"ember, red, sit, {number}")
    return world


def picture(world: World, name: str, seed: int = 1, size: tuple[int, int] = (64, 64), **saved: Any) -> Path:
    data = io.BytesIO()
    drawn(seed, size).save(data, **{"format": "PNG", **saved})
    return world.write(f"projects/ember/images/{name}", data.getvalue())


def checked(world: World, *names: str) -> Report:
    with state_of(world.root) as state:
        return check(world.root, names, state)
