"""Measure a base: the norm of each layer, against which a resize weighs what a LoRA does to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorabuild.hashing import canonical_json
from lorabuild.stage import Component, Job, Stage

if TYPE_CHECKING:
    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace

# Component -> its folder in diffusers' layout.
FOLDERS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


def jobs(repository: Repository) -> Iterable[Job]:
    for base in repository.bases:
        yield Job(
            name=f"norms:{base}",
            params={},
            inputs={component: Component(base, component) for component in FOLDERS},
            outputs=["norms.json"],
        )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `norms.json`: {"fro_ckpt": {kohya's module name: Frobenius norm}}, of all adaptable modules of the base."""
    from lorabuild.components import weight_file
    from lorabuild.nn.keymap import EXPECTED
    from lorabuild.nn.norms import frobenius_norms

    norms: dict[str, float] = {}
    for component, folder in FOLDERS.items():
        for name, norm in frobenius_norms(weight_file(workspace.path(component) / folder), component):
            norms[name] = norm
            progress(len(norms), sum(EXPECTED.values()), component)
    workspace.output("norms.json").write_bytes(canonical_json({"fro_ckpt": norms}))


STAGE = Stage("norms", 1, jobs, run)
