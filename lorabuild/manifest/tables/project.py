"""[project]: what the LoRA is, and the base that it is for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from lorabuild.errors import near_miss
from lorabuild.manifest import values
from lorabuild.manifest.tables.table import Table, Text
from lorabuild.names import quoted


class ProjectTable(Table):
    base: str = Field(description="The model to train on: the name of a base in lorabuild.toml, or tiny.")
    source: Annotated[Text, AfterValidator(values.file)] | None = Field(
        None,
        description="A LoRA file to start from, seen from the manifest's folder: it is resized and chopped, not trained. "
        "~ is the home folder.",
    )
    kind: Literal["character", "style", "concept"] | None = Field(None, description="What the LoRA teaches.")
    trigger: str | None = Field(None, description="The word in a prompt that calls it.")
    title: str | None = Field(None, description="Its name for people, in the file's metadata.")
    author: str | None = Field(None, description="Who made it, in the file's metadata.")
    description: str | None = Field(None, description="A few words on it, in the file's metadata.")
    license: str | None = Field(None, description="The licence, in the file's metadata.")
    tags: Annotated[list[str] | None, BeforeValidator(values.tag_list)] = Field(
        None, description="Tags for the file's metadata: a list, or text with commas."
    )

    @field_validator("base")
    @classmethod
    def _known_base(cls, base: str, info: ValidationInfo) -> str:
        bases = info.context
        if bases is not None and base not in bases:
            raise ValueError(f"{quoted(base)} is not a base of lorabuild.toml{near_miss(base, bases)}")
        return base
