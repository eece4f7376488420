"""Measure a base: the norms of each layer, against which a resize weighs what a LoRA does to it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lorabuild.ahead import cores
from lorabuild.errors import JobError
from lorabuild.hashing import canonical_json
from lorabuild.lora.basefile import base_weights
from lorabuild.lora.canonical import TEXT_PROJECTION
from lorabuild.lora.keymap import EXPECTED, PREFIX
from lorabuild.names import block_of
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
    """Write `norms.json`: {"shape" | "fro_ckpt" | "spn_ckpt": {kohya's module name: …}} of all weights of the base.

    shape [O, I, *k], Frobenius norm, spectral norm. Raises JobError for a base that lacks modules of SDXL.
    """
    from lorabuild.nn.norms import frobenius_norm, spectral_norm

    weights = base_weights(workspace.path("unet"))
    for component, expected in EXPECTED.items():
        found = sum(name.startswith(PREFIX[component]) and _is_adapted(name) for name in weights)
        if found < expected:
            raise JobError(
                f"{workspace.path('unet')}: has {found} adaptable modules in {component}, SDXL has {expected}"
            )
    norms: dict[str, dict] = {
        "shape": {name: weight.shape for name, weight in weights.items()},
        "fro_ckpt": {},
        "spn_ckpt": {},
    }
    with ThreadPoolExecutor(cores()) as pool:
        both = pool.map(lambda weight: (frobenius_norm(weight), spectral_norm(weight)), weights.values())
        for done, (name, found) in enumerate(zip(weights, both, strict=True)):
            progress(done, len(weights), name)
            norms["fro_ckpt"][name], norms["spn_ckpt"][name] = found
    workspace.output("norms.json").write_bytes(canonical_json(norms))


def _is_adapted(name: str) -> bool:
    """Is it a module that LyCORIS' preset "full" adapts? Not so what is in no block, INP00, and the text projection."""
    return block_of(name) not in (None, "INP00") and name != TEXT_PROJECTION


STAGE = Stage("norms", 2, jobs, run)
