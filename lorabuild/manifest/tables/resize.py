"""[resize]: which ranks stay."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainValidator, model_validator

from lorabuild.lora.ranks import KEYS as RECIPE_KEYS
from lorabuild.lora.ranks import recipe_faults, resolve_recipe
from lorabuild.manifest import values
from lorabuild.manifest.tables.table import Table
from lorabuild.manifest.values import Misfit, Misfits


class ResizeTable(Table):
    thr: float | None = Field(None, description="Ranks that score below it are dropped; log10 units.")
    size: float | None = Field(
        None, description="In place of thr: the size of the file in MiB, header and all, at most."
    )
    sv_ratio: float | None = Field(
        None, description="In place of thr: singular values down to the layer's largest divided by this stay."
    )
    sv_fro: float | None = Field(
        None, description="In place of thr: so much of each layer's Frobenius norm stays, 0 to 1."
    )
    sv_cumulative: float | None = Field(
        None, description="In place of thr: so much of the sum of each layer's singular values stays, 0 to 1."
    )
    max_rank: float | None = Field(None, description="No layer keeps more ranks; of convolutions, see max_conv_rank.")
    max_conv_rank: float | None = Field(
        None, description="No convolution keeps more ranks, be it more or less than max_rank, which is the default."
    )
    fro_ckpt: float | None = Field(
        None,
        description="Weight of this score: σ as a part of the base layer's Frobenius norm. Default: 1, if no other.",
    )
    spn_ckpt: float | None = Field(None, description="Weight: σ as a part of the base layer's largest singular value.")
    fro_lora: float | None = Field(None, description="Weight: σ as a part of the LoRA layer's Frobenius norm.")
    spn_lora: float | None = Field(None, description="Weight: σ as a part of the LoRA layer's largest singular value.")
    subspace: float | None = Field(
        None, description="Weight: σ as a part of what the base does in the rank's own direction."
    )
    params: float | None = Field(None, description="Weight: σ for each number that the rank takes in the file.")
    rescale: float | None = Field(None, description="Multiplies the effect of the LoRA. Default: 1.")
    step: Annotated[int | str, PlainValidator(values.step)] = Field(
        "last", description='Which saved step is resized, or "last".'
    )
    allow_empty: bool = Field(False, description="A file without any tensor is not an error.")

    @model_validator(mode="after")
    def _together(self) -> ResizeTable:
        if found := recipe_faults(self.model_dump()):
            raise Misfits(*(Misfit(key, said.removeprefix(f"{key}: ")) for key, said in found))
        recipe = resolve_recipe(self.model_dump())
        for key in RECIPE_KEYS:  # one spelling: weights that add up to 1, nothing that has no effect
            setattr(self, key, recipe.get(key))
        return self
