"""Count what a LoRA's header tells of its training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lorabuild.data.captions import tag_counts
from lorabuild.training.order import batches_per_epoch


def facts_of(
    dataset: Mapping[str, Any], recipe: Mapping[str, Any], log: Sequence[Mapping[str, Any]], modules: Mapping[str, int]
) -> dict[str, Any]:
    """What a file's header tells of its training. Tags are counted as sd-scripts does: once an image, in lower case."""
    images = dataset["images"]
    tags = tag_counts(image["caption"] for image in images)
    buckets: Counter[str] = Counter()
    for image in images:
        buckets["{}x{}".format(*image["bucket"])] += image["repeats"]
    measured = {record["when"]: record["loss"] for record in log if record["event"] == "held_out"}
    steps = recipe["max_train_steps"]
    batches = steps * recipe["gradient_accumulation_steps"]
    return {
        "tag_frequency": dict(tags),
        "num_images": len(images),
        "num_images_with_repeats": sum(buckets.values()),
        "buckets": dict(buckets),
        "loss_before": measured["before"],
        "loss_after": measured["after"],
        "modules": dict(modules),
        "steps": steps,
        "epochs": -(-batches // batches_per_epoch(images, recipe["train_batch_size"])),
    }
