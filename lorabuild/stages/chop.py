"""Keep, scale or drop blocks of a LoRA: what stays is copied, byte by byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.lora.chopping import Blocks, chop_warnings, chopped
from lorabuild.manifest.targets import maker, makers
from lorabuild.names import idle_weights, named_blocks, resolve_chop
from lorabuild.stage import Artifact, Job, Stage
from lorabuild.stages.spectrum import weights_of
from lorabuild.writing import write_body

if TYPE_CHECKING:
    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace


def jobs(repository: Repository) -> Iterable[Job]:
    for project in repository.projects.values():
        for owner, users in makers(project, "chop", "chop").items():
            target, settings = next(iter(users.items()))
            chop = settings["chop"]
            resized = Artifact(f"resize:{maker(project, target, 'resize')}", "weights")
            source = resized if settings["resize"] else weights_of(project, target, settings)
            yield Job(
                name=f"chop:{owner}",
                params={"chop": {"keep": resolve_chop(chop)} | ({"allow_empty": True} if chop["allow_empty"] else {})},
                inputs={"weights": source},
                outputs=["weights"],
                options={"named": named_blocks(chop)} | ({"idle": idle} if (idle := idle_weights(chop)) else {}),
            )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `weights`: the input without the blocks of weight 0. A weight w scales what a block adds to the base by w.

    Tensors in no block stay as they are. Warns of kept blocks that the user named and the file lacks. Raises JobError if
    no tensor is left (unless allow_empty), and for a weight that a layer cannot be scaled by.
    """
    path = workspace.path("weights")
    tensors = read_header(path).tensors
    weights: Mapping[str, float] = job.params["chop"]["keep"]
    blocks = Blocks.read(tensors)

    body = list(chopped(path, tensors, blocks, weights))
    if not body and not job.params["chop"].get("allow_empty"):
        raise JobError(f"[chop] keeps nothing of this LoRA: {blocks} (chop.allow_empty = true permits it)")
    write_body(workspace.output("weights"), body)

    workspace.note(kept=len(body), dropped=len(tensors) - len(body), passed=blocks.counts.get(None, 0))
    options = job.options
    for text in chop_warnings(tensors, blocks, weights, options.get("named", ()), options.get("idle", ())):
        workspace.warn(text)


STAGE = Stage("chop", 2, jobs, run)
