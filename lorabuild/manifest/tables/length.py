"""Which settings go together of how long it is trained, from where on, and what is saved on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lorabuild.manifest.values import Misfit, is_file_name

if TYPE_CHECKING:
    from lorabuild.manifest.tables.recipe import RecipeTable


def misfits(recipe: RecipeTable) -> Iterator[Misfit]:
    """What says one thing twice, or has no effect."""
    if recipe.max_train_epochs:
        for key in sorted({"max_train_steps", "phases"} & recipe.model_fields_set):
            yield Misfit("max_train_epochs", f"takes the place of {key}: leave one of them out")
    for unit in ("steps", "epochs"):
        every, last = f"save_every_n_{unit}", f"save_last_n_{unit}"
        if getattr(recipe, last) and not getattr(recipe, every):
            yield Misfit(last, f"has no effect without {every}")
        if getattr(recipe, last) and recipe.keep:
            yield Misfit("keep", f"takes the place of {last}: leave one of them out")
    if recipe.keep and not (recipe.save_every_n_steps or recipe.save_every_n_epochs):
        yield Misfit("keep", "has no effect without save_every_n_steps or save_every_n_epochs")
    if recipe.init and recipe.network_weights:
        yield Misfit("network_weights", "is sd-scripts' name for init: leave one of them out")
    elif recipe.network_weights and not is_file_name(recipe.network_weights):
        yield Misfit("network_weights", "expected a file; `init` takes projects, too")
    if recipe.dim_from_weights and not (recipe.init or recipe.network_weights):
        yield Misfit("dim_from_weights", "has no effect without init, which names the file")


def settle(recipe: RecipeTable) -> None:
    """One spelling of each: epochs in place of steps, which the data set turns them into; `init`, whose ranks count."""
    if recipe.max_train_epochs:
        recipe.max_train_steps = None
    recipe.init, recipe.network_weights = recipe.init or recipe.network_weights, None
    recipe.dim_from_weights = False
