"""Keep of each layer the ranks that matter to the base: a slice and a scale of the spectrum, without SVD or torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorabuild.errors import JobError
from lorabuild.header import Tensor, TensorInfo, byte_size, header_bytes, read_header, write_body
from lorabuild.lora.layers import Layer, module_of, read_layers
from lorabuild.lora.lowrank import LowRank, common_alpha, entries_of, lowrank_tensors
from lorabuild.lora.ranks import References, choose, nothing_left, resolve_recipe
from lorabuild.stage import Artifact, Job, Stage
from lorabuild.stages.spectrum import BASE_NORMS, FILE_ALPHA, SINGULAR, SUBSPACE, spectrum_of, targets, verbatim
from lorabuild.tensors import SAVE_DTYPES, read_tensor

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace


@dataclass(frozen=True)
class Slices:
    """A layer in a spectrum file: `u` [P, O] and `vh` [P, I, *k] lie there, ranks descending."""

    names: LowRank
    u: TensorInfo
    vh: TensorInfo
    references: References


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        for target, settings in targets(name, project.settings, project.variants):
            if resize := settings["resize"]:
                source = spectrum_of(target, settings, project.settings)
                yield Job(
                    name=f"resize:{target}",
                    params={
                        "resize": resolve_recipe(resize) | ({"allow_empty": True} if resize["allow_empty"] else {}),
                        "recipe": {"save_precision": settings["recipe"]["save_precision"]},
                    },
                    inputs={"spectrum": Artifact(f"spectrum:{source}", "spectrum")},
                    outputs=["weights"],
                )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `weights`: of each layer the ranks that the recipe keeps, in save_precision, with one alpha for the file.

    A layer without such a rank is absent, with all that belongs to it. Tensors that are in no low-rank layer stay as
    they are. Raises JobError if no tensor is left (unless allow_empty), or where a value does not fit the dtype.
    """
    path, recipe = workspace.path("spectrum"), job.params["resize"]
    dtype = SAVE_DTYPES[job.params["recipe"]["save_precision"]]
    layers, others = _read(path)
    alpha = common_alpha([read_tensor(path, FILE_ALPHA, others.pop(FILE_ALPHA)).item()], dtype)
    references = {name: layer.references for name, layer in layers.items()}

    def size(counts: Mapping[str, int]) -> int:
        kept = entries_of([(key, info) for key, info in others.items() if counts.get(module_of(key), 1)])
        kept += [entry for name, layer in layers.items() for entry in layer.names.entries(counts.get(name, 0), dtype)]
        return len(header_bytes(kept)) + sum(byte_size(dtype, shape) for _, dtype, shape in kept)

    ranks = choose(recipe, references, size)
    passed = {key: info for key, info in others.items() if len(ranks.get(module_of(key), "1"))}
    body: list[Tensor] = list(verbatim(path, passed))
    for name, layer in layers.items():
        if len(ranks[name]):
            body += _resized(path, layer, ranks[name], recipe.get("rescale", 1.0), alpha, dtype)
    if not body and not recipe.get("allow_empty"):
        raise JobError(nothing_left(recipe, references) + " (resize.allow_empty = true permits it)")
    write_body(workspace.output("weights"), body)
    workspace.note(
        layers=sum(bool(len(one)) for one in ranks.values()),
        ranks=sum(len(one) for one in ranks.values()),
        zero=sum(one.is_zero for one in references.values()),
        passed=len(passed),
    )


def _read(path: Path) -> tuple[dict[str, Slices], dict[str, TensorInfo]]:
    """The layers of a spectrum by name, and its other tensors."""
    tensors = read_header(path).tensors
    layers = [layer for layer in read_layers(tensors)[0] if layer.name + SINGULAR in tensors]
    found, taken = {}, set()
    for layer in layers:
        own = {suffix: layer.name + suffix for suffix in (SINGULAR, BASE_NORMS, SUBSPACE)}
        numbers = {
            suffix: read_tensor(path, key, tensors[key], "float64") for suffix, key in own.items() if key in tensors
        }
        found[layer.name] = _slices(layer, numbers)
        taken |= {layer.keys["up"], layer.keys["down"], *own.values()}
    return found, {key: info for key, info in tensors.items() if key not in taken}


def _slices(layer: Layer, numbers: Mapping[str, np.ndarray]) -> Slices:
    u, vh = layer.infos["up"], layer.infos["down"]
    names = LowRank.of(layer, (u.shape[1], *vh.shape[1:]))
    frobenius, spectral = numbers[BASE_NORMS].tolist()
    return Slices(names, u, vh, names.references(numbers[SINGULAR], frobenius, spectral, numbers.get(SUBSPACE)))


def _resized(
    path: Path, layer: Slices, ranks: np.ndarray, rescale: float, alpha: float, dtype: str
) -> Iterator[Tensor]:
    def vectors() -> tuple[np.ndarray, np.ndarray]:
        return _rows(path, layer.names.up, layer.u, ranks), _rows(path, layer.names.down, layer.vh, ranks)

    yield from lowrank_tensors(layer.names, layer.references.singular[ranks] * rescale, vectors, alpha, dtype)


def _rows(path: Path, name: str, info: TensorInfo, rows: np.ndarray) -> np.ndarray:
    """The given rows [k, J] of a tensor, ascending; reads no further than the last."""
    count = int(rows[-1]) + 1
    stop = info.start + (info.stop - info.start) // info.shape[0] * count
    part = replace(info, shape=(count, *info.shape[1:]), stop=stop)
    read = read_tensor(path, name, part, trusted=True).reshape(count, -1)  # what is written is looked at again
    return read if count == len(rows) else read[rows]


STAGE = Stage("resize", 2, jobs, run)
