"""Measure a base: the norm of each layer, against which a resize weighs what a LoRA does to it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lorabuild.components import FOLDERS, WEIGHT_FILES
from lorabuild.hashing import canonical_json
from lorabuild.stage import Component, Job, Stage

if TYPE_CHECKING:
    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace

ADAPTABLE = ("unet", "te1", "te2")


def jobs(repository: Repository) -> Iterable[Job]:
    for base in repository.used_bases:
        yield Job(
            name=f"norms:{base}",
            params={},
            inputs={component: Component(base, component) for component in ADAPTABLE},
            outputs=["norms.json"],
        )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `norms.json`: {"fro_ckpt": {kohya's module name: Frobenius norm}}, of all adaptable modules of the base."""
    from lorabuild.nn.keymap import EXPECTED
    from lorabuild.nn.norms import frobenius_norms

    norms: dict[str, float] = {}
    for component in ADAPTABLE:
        for name, norm in frobenius_norms(_weights(workspace.path(component) / FOLDERS[component]), component):
            norms[name] = norm
            progress(len(norms), sum(EXPECTED.values()), name)
    workspace.output("norms.json").write_bytes(canonical_json({"fro_ckpt": norms}))


def _weights(folder: Path) -> Path:
    """The weight file of a component. It is there: the input's digest was made of it."""
    return next(folder / name for name in WEIGHT_FILES if (folder / name).is_file())


STAGE = Stage("norms", 1, jobs, run)
