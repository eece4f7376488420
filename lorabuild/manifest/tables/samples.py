"""[samples]: the pictures that show what a LoRA has learnt."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lorabuild.data.prompts import SAMPLERS
from lorabuild.manifest.tables.table import Count, Table, Text, off
from lorabuild.manifest.values import Misfit


class SamplesTable(Table):
    prompts: Text = Field(
        description="The file of prompts, relative to the manifest: kohya's, a prompt a line with --n --w --h --d --l --s --ss, "
        "or .toml, or .json."
    )
    sample_sampler: Literal[SAMPLERS] = Field(
        "ddim", description="The sampler of prompts without --ss; with k_ it takes Karras' noise levels."
    )
    sample_every_n_steps: Count | None = Field(
        None, description="Draw while training, every so many steps; without it, and without epochs, at every snapshot."
    )
    sample_every_n_epochs: Count | None = Field(
        None, description="Draw while training, after every so many epochs; in place of sample_every_n_steps."
    )
    sample_at_first: bool = Field(False, description="Draw before the first step, too.")
    parity: bool = Field(
        False, description="Draw as sd-scripts does: k_ means nothing, and ddim clips its guesses to -1..1."
    )

    blocks_ablation: bool = off(
        False,
        "Draw each prompt without each block of the resized LoRA (or the trained one), and with each block alone: twice as "
        "many pictures a prompt as it has blocks.",
    )
    held_out: bool = off(
        False,
        "Measure the held-out loss, as the training's log has it, of the base, the trained, and each resized and chopped "
        "file: how much of the gain each keeps.",
    )

    @model_validator(mode="after")
    def _one_interval(self) -> SamplesTable:
        if self.sample_every_n_steps and self.sample_every_n_epochs:
            raise Misfit("sample_every_n_epochs", "sample_every_n_steps says it already: one of them is enough")
        return self
