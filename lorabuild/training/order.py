"""Which images form which batch: a pure function of the data set, the seed and the epoch.

Every image is seen exactly `repeats` times an epoch, also in a resumed training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorabuild.streams import python_random

Sample = tuple[int, int]  # index into the images of dataset.json, repeat (from 0)
Batch = list[Sample]


def epoch_batches(images: Sequence[Mapping[str, Any]], batch_size: int, seed: int, epoch: int) -> list[Batch]:
    """The batches of an epoch (from 0), in the order of training.

    A batch is of one bucket; a bucket's last batch may be short. Both who is with whom and the order of the batches
    are drawn anew each epoch.
    """
    random = python_random(seed, "order", epoch)
    members: dict[tuple[int, ...], Batch] = {}
    for index, image in enumerate(images):
        samples = ((index, repeat) for repeat in range(image["repeats"]))
        members.setdefault(tuple(image["bucket"]), []).extend(samples)
    batches: list[Batch] = []
    for _, samples in sorted(members.items()):
        random.shuffle(samples)
        batches += [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    random.shuffle(batches)
    return batches


def micro_batches(
    images: Sequence[Mapping[str, Any]], batch_size: int, seed: int, start: int = 0
) -> Iterator[tuple[int, Batch]]:
    """(epoch, batch) for ever, epoch after epoch, beginning with micro-batch number `start` (from 0) of the training.

    Raises ValueError if there is nothing to train on.
    """
    count = batches_per_epoch(images, batch_size)
    if count == 0:
        raise ValueError("a data set without images has no batches")
    epoch, skipped = divmod(start, count)
    while True:
        for batch in epoch_batches(images, batch_size, seed, epoch)[skipped:]:
            yield epoch, batch
        epoch, skipped = epoch + 1, 0


def matched_repeats(repeats: Sequence[int], samples: int) -> list[int]:
    """How often each regularisation image is shown in an epoch, so that they are as many as the `samples` trained on.

    As sd-scripts does: each its own number of `repeats` until there are enough, the rest then not at all; if all are
    too few, one more of each in turn.
    """
    shown = []
    for own in repeats:
        shown.append(own if sum(shown) < samples else 0)
    turns, rest = divmod(max(0, samples - sum(shown)), max(1, len(shown)))
    return [count + turns + (number < rest) for number, count in enumerate(shown)]


def batches_per_epoch(images: Sequence[Mapping[str, Any]], batch_size: int) -> int:
    """How many batches an epoch has, short ones included."""
    samples: Counter[tuple[int, ...]] = Counter()
    for image in images:
        samples[tuple(image["bucket"])] += image["repeats"]
    return sum(-(-count // batch_size) for count in samples.values())
