"""Keep, scale or drop blocks of a LoRA by copying byte ranges: no tensor is loaded unless its block is scaled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorabuild.errors import JobError
from lorabuild.header import FileRange, Tensor, TensorInfo, read_header, write_body
from lorabuild.names import BLOCKS, block_of, named_blocks, resolve_chop
from lorabuild.stage import Artifact, Job, Stage
from lorabuild.stages.spectrum import ALPHA, DOWN, MID, UP, targets
from lorabuild.tensors import read_tensor, rounded

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        for target, settings in targets(name, project.settings, project.variants):
            if (chop := settings["chop"]) is not None:
                source = Artifact(f"resize:{target}" if settings["resize"] else f"train:{name}", "weights")
                yield Job(
                    name=f"chop:{target}",
                    params={
                        "chop": {"keep": resolve_chop(chop)} | ({"allow_empty": True} if chop["allow_empty"] else {})
                    },
                    inputs={"weights": source},
                    outputs=["weights"],
                    options={"named": named_blocks(chop)},
                )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `weights`: the input without the blocks of weight 0. A weight w scales what a block adds to the base by w.

    Tensors in no block stay as they are. Warns of kept blocks that the user named and the file lacks. Raises JobError if
    no tensor is left (unless allow_empty), and for a weight that a layer cannot be scaled by.
    """
    path = workspace.path("weights")
    tensors = read_header(path).tensors
    weights: Mapping[str, float] = job.params["chop"]["keep"]
    counts = Counter(block_of(name) for name in tensors)

    body = list(_chopped(path, tensors, weights))
    if not body and not job.params["chop"].get("allow_empty"):
        raise JobError(f"[chop] keeps nothing of this LoRA: {_present(counts)} (chop.allow_empty = true permits it)")
    write_body(workspace.output("weights"), body)

    workspace.note(kept=len(body), dropped=len(tensors) - len(body), passed=counts[None])
    for block in job.options.get("named", ()):
        if not counts[block]:
            workspace.warn(f"{block} is kept, but has no tensors here: {_present(counts)}")


def _chopped(path: Path, tensors: Mapping[str, TensorInfo], weights: Mapping[str, float]) -> Iterator[Tensor]:
    for name, info in tensors.items():
        weight = weights.get(block_of(name) or "", 1.0)
        if weight == 0:
            continue
        if weight == 1 or name.endswith((DOWN, MID, ALPHA)):
            yield name, info.dtype, info.shape, FileRange(path, info.start, info.stop)
        elif name.endswith(UP):
            yield name, info.dtype, info.shape, partial(_scaled, path, name, info, weight)
        else:
            raise JobError(
                f"{name}: cannot be scaled by {weight:g}; only low-rank layers (lora_up) can, others by 0 or 1 (chop.weights)"
            )


def _scaled(path: Path, name: str, info: TensorInfo, weight: float) -> np.ndarray:
    """up times the weight, once: scaling up, down and alpha alike, as chop_blocks does, would cube it."""
    return rounded(read_tensor(path, name, info, "float64") * weight, info.dtype, name)


def _present(counts: Mapping[str | None, int]) -> str:
    """`it has INP04, OUT01`, in the order of the network."""
    blocks = [block for block in BLOCKS if counts[block]]
    return f"it has {', '.join(blocks)}" if blocks else "it has no blocks"


STAGE = Stage("chop", 1, jobs, run)
