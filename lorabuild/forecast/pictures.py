"""How many pictures a drawing is of: prompts, files, and blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabuild.data.prompts import read_prompts
from lorabuild.engine import Engine
from lorabuild.errors import UserError
from lorabuild.forecast.outlook import Outlook
from lorabuild.header import read_header
from lorabuild.lora.chopping import Blocks
from lorabuild.sampling.measuring import INPUTS
from lorabuild.stage import Artifact, File, TextFile, is_family

WHOLE = ("resized", "trained", "source")  # whose blocks are drawn: the first of these that there is
USUAL_BLOCKS = 22  # of a LoRA of SDXL's whole U-Net and both text encoders: all but INP00


@dataclass(frozen=True)
class Pictures:
    """`prompts` × (`columns` + 2 × `blocks`); not `exact` where a file or the snapshots are not there yet to be counted."""

    prompts: int
    columns: int
    blocks: int
    exact: bool

    @property
    def total(self) -> int:
        return self.prompts * (self.columns + 2 * self.blocks)

    @property
    def text(self) -> str:
        """`2 prompts × (5 files + 2 × 22 blocks) = 98 pictures, less those that were drawn before`"""
        blocks = f" + 2 × {self.blocks} blocks" if self.blocks else ""
        about = "" if self.exact else "about "
        many = f"{self.prompts} prompt{'s' * (self.prompts != 1)}"
        return (
            f"{many} × ({self.columns} files{blocks}) = {about}{self.total} pictures, less those that were drawn before"
        )


def pictures(engine: Engine, outlook: Outlook, before: Mapping[str, Outlook]) -> Pictures | None:
    """What a drawing is of; None for other jobs, and where the prompts cannot be read. The base is a column."""
    job = outlook.job
    if job.stage != "samples":
        return None
    item: Any = engine.jobs[job.name].inputs["prompts"]
    assert isinstance(item, TextFile)
    try:
        prompts = len(read_prompts(item.path, item.shown).prompts)
    except UserError:
        return None
    columns, exact = _columns(engine, job.name, before)
    blocks = 0
    if job.params["samples"].get("blocks_ablation"):
        path = _whole(engine, job.name, before)
        blocks = len(Blocks.read(read_header(path).tensors).present) if path else USUAL_BLOCKS
        exact = exact and path is not None
    return Pictures(prompts, columns, blocks, exact)


def _columns(engine: Engine, name: str, before: Mapping[str, Outlook]) -> tuple[int, bool]:
    """How many files are drawn with, the base among them, and whether that is known: of snapshots the training tells."""
    count, exact = 1, True
    for role, item in engine.jobs[name].inputs.items():
        if role in INPUTS:  # of the held-out loss
            continue
        if isinstance(item, Artifact) and is_family(item.role):
            maker = before[item.job]
            exact = exact and maker.found is not None
            steps = [one.removeprefix(item.role) for one in maker.job.snapshots]
            count += sum(int(step) % item.every == 0 for step in steps)
        elif isinstance(item, Artifact | File):
            count += 1
    return count, exact


def _whole(engine: Engine, name: str, before: Mapping[str, Outlook]) -> Path | None:
    """The file whose blocks are drawn, if it stands as a build would make it."""
    inputs = engine.jobs[name].inputs
    item = next(inputs[role] for role in WHOLE if role in inputs)
    if isinstance(item, File):
        return item.path
    assert isinstance(item, Artifact)
    found = before[item.job].found
    output = found.outputs.get(item.role) if found and not found.missing else None
    return engine.store.blob(output.digest) if output else None
