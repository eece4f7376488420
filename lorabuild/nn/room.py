"""Say what memory a training needs before its base is loaded, and which keys would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorabuild.bases.layout import stored_bytes
from lorabuild.errors import JobError
from lorabuild.memory import available_bytes
from lorabuild.nn.dry import dry
from lorabuild.nn.warm import held
from lorabuild.training.memory import Model, needs, remedy, said

LARGE = 1_000_000_000  # bytes of a base's files: below it nobody asks what it needs


@dataclass(frozen=True)
class Room:
    """What a training needs, and what there is; `model` is None where nothing is known, or little is needed."""

    recipe: Mapping[str, Any]
    pixels: int
    free: int | None
    model: Model | None

    @property
    def line(self) -> str:
        return said(needs(self.recipe, self.model, self.pixels), self.free) if self.model else ""

    @property
    def short(self) -> str:
        """What is wrong, and what helps; nothing where it fits."""
        if self.model is None or self.free is None:
            return ""
        need = needs(self.recipe, self.model, self.pixels)
        if sum(need.values()) <= self.free:
            return ""
        return f"the training {self.line}: {remedy(self.recipe, self.model, self.pixels, self.free)}"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises JobError for memory that is not there after all."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            first = str(error).splitlines()[0] if str(error) else "out of memory"
            help = ""
            if self.model:  # what was asked for and is not there is missing from what is needed, too
                wanted = sum(needs(self.recipe, self.model, self.pixels).values())
                help = f"; {remedy(self.recipe, self.model, self.pixels, wanted - 1)}"
            raise JobError(f"the device is out of memory: {first}{help}") from None


def room_of(recipe: Mapping[str, Any], folder: Path, pixels: int, device: str) -> Room:
    """Of a training on the base in `folder`; `recipe` with its `gradient_checkpointing`, `pixels`: of the largest bucket."""
    try:
        model = model_of(recipe, folder) if stored_bytes(folder, "unet") >= LARGE else None
    except (JobError, OSError):  # whatever is wrong with the base is told where it is loaded
        model = None
    return Room(recipe, pixels, free_bytes(device) if model else None, model)


def model_of(recipe: Mapping[str, Any], folder: Path | None) -> Model:
    found = dry(recipe, folder)
    return Model(found.networks, found.width, found.parameters, found.whole)


def free_bytes(device: str) -> int | None:
    """What is free, or held by networks of this process that the training uses or that make way for it."""
    if device == "cpu":
        return None if (free := available_bytes()) is None else free + sum(held().values())
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
