"""Count the updates of a training, epochs turned into updates, and choose those after which its weights are saved.

An epoch is a pass over the data, each sample exactly once. An update goes on over the end of an epoch: epoch `e` is
over with the update that takes its last micro-batch, number ceil(e · batches / accumulation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lorabuild.training.phases import phase_ends

BY_EPOCH = ("max_train_epochs", "save_every_n_epochs")  # keys that only the data set turns into updates

Recipe = Mapping[str, Any]


def hangs_on_data(recipe: Recipe, saved: Mapping[str, Any]) -> bool:
    """Does it take the data set to know the snapshots? `recipe`: what is trained, `saved`: the keys of the saved set."""
    return any(recipe.get(key) or saved.get(key) for key in BY_EPOCH)


def end_of_epoch(epoch: int, batches: int, accumulation: int) -> int:
    """The update with which an epoch (from 1) is over. `batches`: micro-batches an epoch."""
    return -(-epoch * batches // accumulation)


def update_count(recipe: Recipe, batches: int) -> int:
    """The updates of a training."""
    if epochs := recipe.get("max_train_epochs"):
        return end_of_epoch(epochs, batches, recipe["gradient_accumulation_steps"])
    return recipe["max_train_steps"]


def counted(recipe: Recipe, batches: int) -> dict[str, Any]:
    """The recipe with `max_train_steps` as a number, whatever it was given in."""
    return {**recipe, "max_train_steps": update_count(recipe, batches)}


def surely_wanted_steps(recipe: Recipe, saved: Mapping[str, Any]) -> list[int]:
    """Those of `wanted_steps` that are wanted whatever the data set is like."""
    if recipe.get("max_train_epochs") or (_every(saved, "epochs") and "last" in (saved.get("keep") or "")):
        return saved["resized"]  # "last 3" counts the saves by epochs, too
    return wanted_steps(recipe, {**saved, "save_every_n_epochs": None}, 0)


def wanted_steps(recipe: Recipe, saved: Mapping[str, Any], batches: int) -> list[int]:
    """The updates after which a snapshot is saved: as the recipe says, and each that a resize starts from (`resized`)."""
    return sorted({*saved_steps(recipe, saved, batches), *saved["resized"]})


def saved_steps(recipe: Recipe, saved: Mapping[str, Any], batches: int) -> list[int]:
    """The updates whose weights are kept by `save_every_*` and the keep policy, and the end of each phase.

    `save_last_n_steps` is a distance in updates from the last save, `save_last_n_epochs` a number of saves, as in
    sd-scripts (which removes on the way; here the others are never written). `keep`: those that any of its terms names.
    """
    last = update_count(recipe, batches)
    by_step = (
        list(range(saved["save_every_n_steps"], last + 1, saved["save_every_n_steps"]))
        if _every(saved, "steps")
        else []
    )
    if (distance := saved.get("save_last_n_steps")) and by_step:
        by_step = [step for step in by_step if step >= by_step[-1] - distance]
    by_epoch = list(dict.fromkeys(_ends(saved, recipe, batches, last)))
    if number := saved.get("save_last_n_epochs"):
        by_epoch = by_epoch[-number:]
    steps = sorted({*by_step, *by_epoch})
    return sorted({*_kept(steps, saved.get("keep")), *phase_ends(recipe)})


def _every(saved: Mapping[str, Any], unit: str) -> int:
    return saved.get(f"save_every_n_{unit}") or 0


def _ends(saved: Mapping[str, Any], recipe: Recipe, batches: int, last: int) -> Iterable[int]:
    """The ends of every so many epochs, but for the end of the training: those are the final weights."""
    if (every := _every(saved, "epochs")) and batches:
        epoch = every
        while (step := end_of_epoch(epoch, batches, recipe["gradient_accumulation_steps"])) < last:
            yield step
            epoch += every


KEEPS: dict[str, Callable[[list[int], int], Iterable[int]]] = {
    "last": lambda steps, number: steps[-number:],
    "every": lambda steps, number: (step for step in steps if step % number == 0),
}


def _kept(steps: list[int], policy: str | None) -> set[int]:
    if policy is None:
        return set(steps)
    terms = (term.split() for term in policy.split(", "))
    return {step for word, number in terms for step in KEEPS[word](steps, int(number))}
