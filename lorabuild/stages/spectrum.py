"""Turn a LoRA into its singular basis once; after it, every resize is a slice and a scale."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.header import read_header
from lorabuild.lora.basefile import base_weights
from lorabuild.lora.layers import Layer
from lorabuild.lora.lowrank import LowRank, common_alpha, scalar
from lorabuild.lora.match import SHOWN, resizable
from lorabuild.manifest.sources import source_path
from lorabuild.manifest.targets import asks_subspace, maker, makers
from lorabuild.stage import Artifact, Component, File, Job, Stage
from lorabuild.stages.norms import ADAPTABLE
from lorabuild.writing import Tensor, verbatim, write_body

if TYPE_CHECKING:
    from lorabuild.manifest import Project, Repository
    from lorabuild.workspace import Progress, Workspace

# What a spectrum has for all layers together, in name order; read at once, where a thousand small reads take longer.
SINGULAR, BASE_NORMS, SUBSPACE, FILE_ALPHA = "S", "base_norms", "subspace", "alpha"
VERBATIM = "="  # begins the name of a tensor that is no part of the spectrum


def jobs(repository: Repository) -> Iterable[Job]:
    """One a project, and one for each variant that cannot share it: see `maker`."""
    for project in repository.projects.values():
        for owner, users in makers(project, "spectrum", "resize").items():
            target, settings = next(iter(users.items()))
            subspace = any(asks_subspace(one["resize"]) for one in users.values())
            base = settings["project"]["base"]
            inputs = {
                "weights": weights_of(project, target, settings),
                "norms": Artifact(f"norms:{base}", "norms.json"),
            }
            yield Job(
                name=f"spectrum:{owner}",
                params={"spectrum": {"subspace": True}} if subspace else {},
                inputs=inputs | ({part: Component(base, part) for part in ADAPTABLE} if subspace else {}),
                outputs=["spectrum"],
            )


def weights_of(project: Project, target: str, settings: Mapping[str, Any]) -> Artifact | File:
    """What is resized, or chopped if nothing is resized: the trained weights, or the LoRA that the project starts from."""
    if source := source_path(project):
        return File(source, settings["project"]["source"])
    step = (settings["resize"] or {}).get("step", "last")
    return Artifact(f"train:{maker(project, target, 'train')}", "weights" if step == "last" else f"step/{step}")


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `spectrum`: of each layer that the base has too, in float32 and ranks descending,

    U transposed [P, O] and Vh [P, I, *k], under the names of its up and down. `S` [ΣP] are the singular values of all
    layers in name order: U·diag(S)·Vh is what a layer adds to the base, alpha / R included. `base_norms` [layers, 2] are
    Frobenius' and the spectral norm of the base's weights; `subspace` [ΣP], |u_iᵀ W v_i|, is there if a resize uses it;
    `alpha` [] is that of the file. All other tensors (of layers that the base lacks, norms, DoRA scales) travel as they
    are, `=` before their names. Raises JobError for weights that are not finite, and for a LoRA not for this base.
    """
    from lorabuild.nn.factors import alpha_of
    from lorabuild.nn.spectra import decompose_layers, vectors
    from lorabuild.nn.subspace import subspace

    path = workspace.path("weights")
    norms = json.loads(workspace.path("norms").read_bytes())
    known, unknown, passed = resizable(read_header(path), norms["shape"])

    spectra = decompose_layers(path, known, progress=lambda done: progress(done, len(known), "singular values"))
    base = base_weights(workspace.path("unet")) if "spectrum" in job.params else {}
    alpha = common_alpha((alpha_of(path, layer) for layer in known), "F32")
    body = [scalar(FILE_ALPHA, alpha), *verbatim(path, passed, VERBATIM)]
    for layer, shape in known.items():
        body += _layer(path, LowRank.of(layer, shape), layer, spectra[layer], vectors)
    body.append(_numbers(SINGULAR, [spectra[layer].singular for layer in known]))
    body.append(
        _numbers(BASE_NORMS, [[norms["fro_ckpt"][one.canonical], norms["spn_ckpt"][one.canonical]] for one in known], 2)
    )
    if base:
        body.append(_numbers(SUBSPACE, [subspace(path, one, spectra[one], base[one.canonical]) for one in known]))
    write_body(workspace.output("spectrum"), body)

    workspace.note(decomposed=len(known), passed=len(passed))
    if unknown:
        names = ", ".join(layer.name for layer in unknown[:SHOWN]) + (", …" if len(unknown) > SHOWN else "")
        workspace.warn(f"{len(unknown)} layers are not in the base and stay as they are: {names}")


def _layer(path: Path, names: LowRank, layer: Layer, spectrum: Any, vectors: Any) -> Iterator[Tensor]:
    import numpy as np

    rank = len(spectrum.singular)

    @lru_cache(maxsize=1)
    def once() -> tuple[np.ndarray, np.ndarray]:
        u, vh = vectors(path, layer, spectrum, np.arange(rank))
        return np.ascontiguousarray(u.T, "<f4"), np.ascontiguousarray(vh, "<f4")

    def make_u() -> np.ndarray:
        u = once()[0]
        once.cache_clear()  # the other, first by name, is written already
        return u

    yield names.up, "F32", (rank, names.shape[0]), make_u
    yield names.down, "F32", (rank, *names.shape[1:]), lambda: once()[1]


def _numbers(name: str, numbers: Sequence[Any], columns: int = 0) -> Tensor:
    """All `numbers` one after another, [n], or [n, columns]."""
    import numpy as np

    array = np.concatenate([np.asarray(one, "<f4") for one in numbers] or [np.empty(0, "<f4")])
    array = array.reshape(-1, columns) if columns else array
    return name, "F32", array.shape, array


STAGE = Stage("spectrum", 2, jobs, run)
