"""Keep of each layer the ranks that matter to the base: a slice and a scale of the spectrum, without SVD or torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorabuild.errors import JobError
from lorabuild.header import FileRange, Tensor, TensorInfo, read_header, write_body
from lorabuild.manifest.keys import result_keys
from lorabuild.stage import Artifact, Job, Stage
from lorabuild.stages.spectrum import ALPHA, DOWN, FILE_ALPHA, NORM, PARTS, UP, spectrum_of, targets
from lorabuild.tensors import FLOATS, SAVE_DTYPES, nearest, read_tensor, rounded

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace

ZERO = 1e-6  # a layer whose largest singular value is below counts as untrained; resize_lora's own constant


@dataclass(frozen=True)
class Spectrum:
    """A layer in a spectrum file. singular [P] descending; scores [P], log10, say how much a rank matters to the base."""

    name: str
    u: TensorInfo
    vh: TensorInfo
    singular: np.ndarray
    scores: np.ndarray

    @property
    def is_zero(self) -> bool:
        return bool(self.singular[0] < ZERO)


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        for target, settings in targets(name, project.settings, project.variants):
            if settings["resize"]:
                resize = {key: value for key, value in result_keys(settings, "resize").items() if key != "step"}
                source = spectrum_of(target, settings, project.settings)
                yield Job(
                    name=f"resize:{target}",
                    params={"resize": resize, "recipe": {"save_precision": settings["recipe"]["save_precision"]}},
                    inputs={"spectrum": Artifact(f"spectrum:{source}", "spectrum")},
                    outputs=["weights"],
                )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `weights`: of each layer the ranks with score >= thr, in save_precision, with one alpha for the file.

    A layer without such a rank is absent, with all that belongs to it. Tensors that are in no low-rank layer stay, in
    save_precision too. Raises JobError if no tensor is left, or where a value does not fit the dtype.
    """
    path = workspace.path("spectrum")
    others = dict(read_header(path).tensors)
    dtype = SAVE_DTYPES[job.params["recipe"]["save_precision"]]
    alpha = _file_alpha(path, others.pop(FILE_ALPHA), dtype)
    layers = list(_take_layers(path, others))
    threshold = job.params["resize"]["thr"]

    ranks = {layer.name: 0 if layer.is_zero else int((layer.scores >= threshold).sum()) for layer in layers}
    kept = {name: info for name, info in others.items() if ranks.get(name.partition(".")[0], 1)}
    body: list[Tensor] = list(_cast(path, kept, dtype))
    for layer in layers:
        if rank := ranks[layer.name]:
            body += _resized(path, layer, rank, alpha, dtype)
    if not body:
        raise JobError(f"resize.thr = {threshold:g} keeps nothing of this LoRA: {_highest(layers)}")
    write_body(workspace.output("weights"), body)
    workspace.note(
        layers=sum(map(bool, ranks.values())),
        ranks=sum(ranks.values()),
        zero=sum(layer.is_zero for layer in layers),
        passed=len(kept),
    )


def _file_alpha(path: Path, info: TensorInfo, dtype: str) -> float:
    """The one alpha of the file, as `dtype` has it: what it cannot hold is no loss, for the factors make up for it."""
    alpha = nearest(read_tensor(path, FILE_ALPHA, info).item(), dtype)
    return alpha if 0 < alpha < math.inf else 1.0


def _take_layers(path: Path, tensors: dict[str, TensorInfo]) -> Iterator[Spectrum]:
    """The layers of a spectrum, whose tensors are taken out of `tensors`.

    score_i = log10 σ_i - log10 ‖W‖_F: resize_lora's `fro_ckpt` ("README: Score types"), which is relative to the base's
    layer. Its weight does not matter as long as it is the only term: resize_lora divides weights by their sum.
    """
    import numpy as np

    names = sorted(name.removesuffix(NORM) for name in tensors if name.endswith(NORM))
    for name in names:
        infos = {part: tensors.pop(f"{name}.{part}") for part in PARTS}
        norm = read_tensor(path, name + NORM, tensors.pop(name + NORM), "float64")
        singular = read_tensor(path, f"{name}.S", infos["S"], "float64")
        with np.errstate(divide="ignore", invalid="ignore"):  # of a base layer of zeros, all is kept
            scores = np.log10(singular) - np.log10(norm)
        yield Spectrum(name, infos["U"], infos["Vh"], singular, scores)


def _resized(path: Path, layer: Spectrum, rank: int, alpha: float, dtype: str) -> Iterator[Tensor]:
    """up [O, k, *1] = U √(cS), down [k, I, *k] = √(cS) Vh with c = k/alpha: alpha/k · up @ down is U S Vh.

    Each half gets the root, so that neither leaves the range that half precision resolves well.
    """
    import numpy as np

    roots = np.sqrt(layer.singular[:rank] * (rank / alpha))
    rows, kernel = layer.u.shape[0], layer.vh.shape[2:]
    up, down, one = layer.name + UP, layer.name + DOWN, layer.name + ALPHA

    def make_up() -> np.ndarray:
        return rounded(read_tensor(path, up, layer.u)[:, :rank] * roots, dtype, up)

    def make_down() -> np.ndarray:
        """Reads the first k of P ranks: they lie in front."""
        info = layer.vh
        stop = info.start + (info.stop - info.start) // info.shape[0] * rank
        first = replace(info, shape=(rank, *info.shape[1:]), stop=stop)
        vh = read_tensor(path, down, first)
        return rounded(vh * roots.reshape(-1, *[1] * (vh.ndim - 1)), dtype, down)

    yield up, dtype, (rows, rank, *[1] * len(kernel)), make_up
    yield down, dtype, (rank, *layer.vh.shape[1:]), make_down
    yield one, dtype, (), rounded(np.array(alpha), dtype, one)


def _cast(path: Path, tensors: Mapping[str, TensorInfo], dtype: str) -> Iterator[Tensor]:
    """Tensors of the file at `path` in `dtype`; those that are in it already, or are no floats, as they are."""

    def make(name: str, info: TensorInfo) -> np.ndarray:
        return rounded(read_tensor(path, name, info), dtype, name)

    for name, info in tensors.items():
        if info.dtype in FLOATS and info.dtype != dtype:
            yield name, dtype, info.shape, partial(make, name, info)
        else:
            yield name, info.dtype, info.shape, FileRange(path, info.start, info.stop)


def _highest(layers: Iterable[Spectrum]) -> str:
    """What a threshold would have to be, for the message to who set it too high."""
    best = max((layer for layer in layers if not layer.is_zero), key=lambda layer: layer.scores[0], default=None)
    if best is None:
        return "it has no trained layer that the base has"
    return f"the highest score is {best.scores[0]:.4f} ({best.name})"


STAGE = Stage("resize", 1, jobs, run)
