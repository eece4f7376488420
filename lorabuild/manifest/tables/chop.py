"""[chop]: which blocks stay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from lorabuild.manifest.tables.table import Table
from lorabuild.manifest.values import Misfit
from lorabuild.names import block_name, matching_blocks, resolve_chop


def _checked_entry(entry: str) -> str:
    matching_blocks(entry.removeprefix("!"))
    return entry


class ChopTable(Table):
    keep: list[Annotated[str, AfterValidator(_checked_entry)]] | None = Field(
        None, description="Blocks that stay: names, globs, negations, in order. Default: all."
    )
    weights: dict[Annotated[str, AfterValidator(block_name)], float] | None = Field(
        None, description="Blocks that are scaled: 0.5 is half the effect, unlisted ones are 1."
    )
    vector: str | None = Field(
        None,
        description="In place of keep: 12, 20, 21 or 22 numbers, a preset of Inspire-Pack, or its notation with %.",
    )
    vector_style: Literal["resize_lora", "inspire"] | None = Field(
        None,
        description="What a first number of vector other than 1 is: the U-Net's factor, or the text encoders' weight.",
    )
    allow_empty: bool = Field(False, description="A file without any tensor is not an error.")

    @model_validator(mode="after")
    def _together(self) -> ChopTable:
        try:
            resolve_chop(self.model_dump())
        except ValueError as error:
            raise Misfit("weights" if self.vector is None else "vector", str(error)) from None
        return self
