"""Keep of each layer the ranks that matter to the base: a slice and a scale of the spectrum, without SVD or torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from lorabuild.data.captions import tag_counts
from lorabuild.hashing import canonical_json
from lorabuild.header import MAX_HEADER_BYTES, TensorInfo, read_header
from lorabuild.lora.layers import read_layers
from lorabuild.lora.lowrank import LowRank, common_alpha
from lorabuild.lora.ranks import resolve_recipe
from lorabuild.lora.resizing import Resize
from lorabuild.manifest.targets import maker, makers
from lorabuild.stage import Artifact, File, Input, Job, Stage
from lorabuild.stages.spectrum import (
    BASE_NORMS,
    FILE_ALPHA,
    SINGULAR,
    SUBSPACE,
    VERBATIM,
    weights_of,
)
from lorabuild.tensors import SAVE_DTYPES, read_tensor
from lorabuild.writing import header_bytes, write_body

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace

OWN_KIB = 8  # of the header of a published file, but for what grows with the project; it has 4 to 5 in the examples


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        for owner, users in makers(project, "resize", "resize").items():
            target, settings = next(iter(users.items()))
            resize = settings["resize"]
            recipe = resolve_recipe(resize) | ({"allow_empty": True} if resize["allow_empty"] else {})
            source = maker(project, target, "spectrum")
            inputs: dict[str, Input] = {"spectrum": Artifact(f"spectrum:{source}", "spectrum")}
            if "size" in recipe:  # the published file's header counts, too: what it will tell decides its size
                recipe["header_kib"] = OWN_KIB + len(canonical_json(settings["project"])) // 1024
                inputs["told"] = _told(name, weights_of(project, target, settings))
            yield Job(
                name=f"resize:{owner}",
                params={"resize": recipe, "recipe": {"save_precision": settings["recipe"]["save_precision"]}},
                inputs=inputs,
                outputs=["weights"],
            )


def _told(name: str, weights: Artifact | File) -> Input:
    """What a header repeats at length: the tags of the data set, or the metadata of the LoRA that it starts from."""
    return weights if isinstance(weights, File) else Artifact(f"dataset:{name}", "dataset.json")


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `weights`: of each layer the ranks that the recipe keeps, in save_precision, with one alpha for the file.

    A layer without such a rank is absent, with all that belongs to it. Tensors that are in no low-rank layer stay as
    they are. Raises JobError if no tensor is left (unless allow_empty), or where a value does not fit the dtype.
    """
    path, recipe = workspace.path("spectrum"), job.params["resize"]
    room = recipe["header_kib"] * 1024 + _told_bytes(workspace.path("told"), job.target) if "size" in recipe else 0
    infos, resize = read_spectrum(path, SAVE_DTYPES[job.params["recipe"]["save_precision"]])
    resize = replace(resize, recipe=recipe)
    ranks = resize.choose(lambda entries: room + len(header_bytes(entries)), "resize.allow_empty = true permits it")

    def vectors(name: str, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        up, down = infos[name]
        return _rows(path, name, up, kept), _rows(path, name, down, kept)

    write_body(workspace.output("weights"), resize.tensors(ranks, vectors))
    workspace.note(**resize.notes(ranks))


def _told_bytes(path: Path, name: str) -> int:
    """An upper bound of what a header tells of a data set or repeats of a LoRA, in bytes."""
    with open(path, "rb") as file:
        is_lora = (
            int.from_bytes(file.read(8), "little") <= MAX_HEADER_BYTES
        )  # text would be a length beyond all measure
    if is_lora:
        return len(canonical_json(dict(read_header(path).metadata)))
    images = json.loads(path.read_bytes())["images"]
    tags = tag_counts(image["caption"] for image in images)
    buckets, repeats = {tuple(image["bucket"]) for image in images}, {image["repeats"] for image in images}
    return len(canonical_json(tags)) * 2 + len(buckets) * 80 + len(repeats) * (70 + len(name))


def read_spectrum(path: Path, dtype: str) -> tuple[dict[str, tuple[TensorInfo, TensorInfo]], Resize]:
    """Where U [P, O] and Vh [P, I, *k] of each layer lie in a spectrum, and all else that a resize needs of it."""
    tensors = read_header(path).tensors
    layers, _ = read_layers({key: info for key, info in tensors.items() if not key.startswith(VERBATIM)})
    together = [key for key in (SINGULAR, BASE_NORMS, SUBSPACE, FILE_ALPHA) if key in tensors]
    own = {key: read_tensor(path, key, tensors[key], "float64") for key in together}
    stops = list(accumulate(layer.infos["up"].shape[0] for layer in layers))
    infos, names, references = {}, {}, {}
    for layer, norms, start, stop in zip(layers, own[BASE_NORMS].tolist(), [0, *stops], stops, strict=False):
        infos[layer.name] = u, vh = layer.infos["up"], layer.infos["down"]
        names[layer.name] = name = LowRank.of(layer, (u.shape[1], *vh.shape[1:]))
        directions = own[SUBSPACE][start:stop] if SUBSPACE in own else None
        references[layer.name] = name.references(own[SINGULAR][start:stop], *norms, directions)
    passed = {key.removeprefix(VERBATIM): info for key, info in tensors.items() if key.startswith(VERBATIM)}
    alpha = common_alpha([own[FILE_ALPHA].item()], dtype)
    return infos, Resize(path, names, references, passed, alpha, dtype)


def _rows(path: Path, name: str, info: TensorInfo, rows: np.ndarray) -> np.ndarray:
    """The given rows [k, J] of a tensor, ascending; reads no further than the last."""
    count = int(rows[-1]) + 1
    stop = info.start + (info.stop - info.start) // info.shape[0] * count
    part = TensorInfo(info.dtype, (count, *info.shape[1:]), info.start, stop)
    read = read_tensor(path, name, part, trusted=True).reshape(count, -1)  # what is written is looked at again
    return read if count == len(rows) else read[rows]


STAGE = Stage("resize", 2, jobs, run)
