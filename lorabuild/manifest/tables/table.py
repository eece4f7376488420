"""What all tables share: strictness, and the types of their values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lorabuild.manifest import values
from lorabuild.names import name_problem

MOST = 2**31 - 1
Whole = Annotated[int, Field(ge=0, le=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Side = Annotated[int, Field(ge=8, le=16384)]  # pixels
Rate = Annotated[float, Field(ge=0)]
Part = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Extension = Annotated[str, AfterValidator(values.dotted)]


def _checked_name(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


Name = Annotated[str, AfterValidator(_checked_name)]


class Table(BaseModel):
    """Strict: a number is not text, `true` is not 1, unknown keys are errors. Whole numbers do for others."""

    # Deferred: only whole files are validated, so that the tables in them need no validator of their own.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


def off(default: Any, description: str) -> Any:
    """A key that came later, and whose default changes nothing: at it, it is left out of the settings.

    So it is in no key either, and what was built before the key was there stays fresh. Read it by
    `settings.get(key, default)`.
    """
    return Field(default, exclude_if=lambda value: value == default, description=description)
