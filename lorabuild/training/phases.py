"""The phases of a training: each a recipe of its own for the rates, all of them one run over one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any


def phases(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recipe of each phase; of a training without phases, its own."""
    whole = {key: value for key, value in recipe.items() if key != "phases"}
    return [whole | phase for phase in recipe.get("phases") or [{}]]


def phase_ends(recipe: Mapping[str, Any]) -> list[int]:
    """The update after which each phase ends, counted over all; [] for a training without phases."""
    return list(accumulate(phase["max_train_steps"] for phase in recipe.get("phases") or []))


def phase_at(recipe: Mapping[str, Any], update: int) -> tuple[int, int]:
    """(number of the phase, updates of it that are done) before update number `update`, from 0.

    What is past the end belongs to the last phase.
    """
    ends = phase_ends(recipe)
    number = next((number for number, end in enumerate(ends[:-1]) if update < end), max(0, len(ends) - 1))
    return number, update - (ends[number - 1] if number else 0)
