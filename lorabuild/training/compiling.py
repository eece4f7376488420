"""Say whether compiling the U-Net pays for a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A guess, as no GPU was at hand: a minute or two of compiling, a tenth of some 100 to 250 ms an image.
COMPILING_PAYS = 6000  # images


def to_compile(asked: bool | None, recipe: Mapping[str, Any], device: str) -> bool:
    """Whether to compile the U-Net's blocks: on a GPU alone, as its bytes are not promised.

    By itself for a LoCon, and where the training sees enough images. Never where something is drawn in each layer, or
    a layer's scale changes from update to update: each would be compiled anew, all the time.
    """
    args = recipe["network_args"]
    changing = any(args.get(key) for key in ("dropout", "rank_dropout", "module_dropout")) or args["algo"] == "dylora"
    if device == "cpu" or changing or recipe.get("scale_weight_norms"):
        return False
    if asked is not None:
        return asked
    images = recipe["max_train_steps"] * recipe["gradient_accumulation_steps"] * recipe["train_batch_size"]
    return args["algo"] == "locon" and images >= COMPILING_PAYS
