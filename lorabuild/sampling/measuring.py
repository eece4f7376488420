"""What a job of samples reads for the held-out loss: the data set, the recipe's keys, and whose training a file is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorabuild.lora.adapter_shape import rates_of
from lorabuild.lora.presets import TEXT_PARTS
from lorabuild.manifest.targets import makers
from lorabuild.stage import Artifact

if TYPE_CHECKING:
    from lorabuild.manifest import Project

INPUTS = ("dataset", "latents")
RECIPE = ("seed", "mixed_precision", "zero_terminal_snr")  # what shapes a picture
MEASURED = (  # what shapes the held-out loss, beside these
    "train_batch_size", "gradient_accumulation_steps", "max_train_steps", "max_train_epochs", "validation_split",
    "validation_seed", "max_validation_steps", "weighted_captions",
)  # fmt: skip


def data_inputs(project: str) -> dict[str, Artifact]:
    """What the training reads, too."""
    return {
        "dataset": Artifact(f"dataset:{project}", "dataset.json"),
        "latents": Artifact(f"latents:{project}", "latents"),
    }


def measuring(project: Project, trainers: Mapping[str, str]) -> dict[str, Any]:
    """How the project's training measures itself (`recipe`, the keys that a held-out loss hangs on, and `learns_text`:
    whether it learns in the text encoders), and, where there are any, the `trainings` beside it by the name of their
    variant, likewise, with `files`, the roles of what was made by them.

    `trainers`: role -> whose training the file comes from.
    """
    trainings = {}
    for owner, users in makers(project, "train").items():
        if owner != project.name:
            files = sorted(role for role, trainer in trainers.items() if trainer == owner)
            trainings[owner.partition("@")[2]] = _told(next(iter(users.values()))) | {"files": files}
    return _told(project.settings) | ({"trainings": trainings} if trainings else {})


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    recipe = settings["recipe"]
    return {
        "recipe": {key: value for key, value in recipe.items() if key in (*RECIPE, *MEASURED)},
        "learns_text": any(rates_of(recipe)[part] for part in TEXT_PARTS),
    }
