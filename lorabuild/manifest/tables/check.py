"""[check]: how severe findings are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lorabuild.findings import changeable_code
from lorabuild.manifest.tables.table import Table


class CheckTable(Table):
    levels: dict[Annotated[str, AfterValidator(changeable_code)], Literal["off", "warn", "error"]] = Field(
        default_factory=dict,
        description='How severe a finding of `check` is, by its code: "off", "warn" or "error" (docs/findings.md).',
    )
