"""A project of which nothing has changed is not even loaded; every file that it was made from or has made can change that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_lab import LAYERS, write_lora
from world import World

from lorabuild.session import opened

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
DODO = """\
from standins import install

install("norms", "dataset", "latents", "train", "spectrum", "resize")
from lorabuild.graph import DOIT_CONFIG, task_lorabuild
"""


class Quick(World):
    """A repository of two projects whose long stages are stand-ins."""

    def doit(self, *args: str, **env: str):
        return super().doit(
            *args, PYTHONPATH=os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]), **env
        )

    @property
    def clean(self) -> set[str]:
        """The projects that a build would leave alone."""
        with opened(self.root, writing=False, building=False, wanted=frozenset()) as engine:
            return set(engine.clean)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quick]:
    found = Quick(tmp_path_factory.mktemp("clean") / "repository")
    found.write("dodo.py", DODO)
    found.write("lorabuild.toml", '[models]\ndirs = ["models"]\n\n[bases.own]\nfile = "own.safetensors"\n')
    found.write("recipes/short.toml", "[recipe]\nmax_train_steps = 2\n")
    found.project("ember")
    manifest = found.root / "projects/ember/lora.toml"
    manifest.write_text('extends = "short"\n' + manifest.read_text())
    write_lora(found.root / "projects/moss/old.safetensors", LAYERS)
    write_lora(found.root / "models/own.safetensors", LAYERS)
    found.write(
        "projects/moss/lora.toml", '[project]\nbase = "own"\nsource = "old.safetensors"\n[chop]\nkeep = ["OUT01"]\n'
    )
    yield found


def settled(world: Quick) -> None:
    result = world.doit()
    assert result.code == 0, result.out + result.err
    if world.clean != {"ember", "moss"}:  # a file was too young to be trusted
        world.doit()
    assert world.clean == {"ember", "moss"}


def rewritten(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def blob(world: Quick, job: str) -> Path:
    with opened(world.root, writing=False, building=False) as engine:
        (output,) = engine.assess(job).outputs.values()
        return engine.store.blob(output.digest)
