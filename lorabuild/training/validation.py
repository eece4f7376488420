"""Hold images of a data set back from training, and choose after which updates the loss of those is logged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lorabuild.streams import stream_seed

POINTS = 10  # of a training's course, the last of them its end, at which the held-out loss stands in its log

Images = Sequence[Mapping[str, Any]]


def split(images: Images, recipe: Mapping[str, Any]) -> tuple[Images, Images]:
    """(trained, held back) of the `images` of dataset.json: `validation_split` of all pictures is held back.

    Which ones follows from the seed and each picture's digest, so that one more picture changes the place of one at
    most. A picture that stands in several entries goes as a whole. Those of regularisation are never held back, and one
    picture is always trained.
    """
    if not recipe.get("validation_split"):
        return images, []
    chosen = held_back_of({image["digest"] for image in images if not image.get("is_reg")}, recipe)
    kept = [image for image in images if image.get("is_reg") or image["digest"] not in chosen]
    others = [image for image in images if not image.get("is_reg") and image["digest"] in chosen]
    return kept, [{**image, "repeats": 1} for image in others]


def held_back_of(digests: Collection[str], recipe: Mapping[str, Any]) -> set[str]:
    """Which pictures are held back."""
    seed = validation_seed(recipe)
    drawn = sorted(digests, key=lambda digest: (stream_seed(seed, "held_back", digest), digest))
    return set(drawn[: held_back(len(drawn), recipe)])


def held_back(pictures: int, recipe: Mapping[str, Any]) -> int:
    """How many of so many pictures are held back: the next whole number, one at least."""
    part = recipe.get("validation_split", 0.0)
    return min(max(1, round(pictures * part)), max(0, pictures - 1)) if part else 0


def validation_seed(recipe: Mapping[str, Any]) -> int:
    """What the choice of images, and the noise that they are measured with, follow from."""
    seed = recipe.get("validation_seed")
    return recipe["seed"] if seed is None else seed


def points(recipe: Mapping[str, Any]) -> set[int]:
    """The updates after which the held-out loss is logged, apart from beginning and end: each tenth of the training."""
    if not (recipe.get("validation") or recipe.get("validation_split")):
        return set()
    last = recipe["max_train_steps"]
    return {-(-last * point // POINTS) for point in range(1, POINTS)} - {last}
