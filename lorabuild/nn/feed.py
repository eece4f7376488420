"""Bring micro-batches to the device: the next one made ahead, captions as tokens, or encoded where that is always the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from lorabuild.nn.base import DTYPES, Base
from lorabuild.nn.batches import Data, MicroBatch, captions_of, held_out_batches, held_out_count, micro_batch
from lorabuild.nn.text import caption_ids
from lorabuild.nn.text_ahead import TextAhead
from lorabuild.training.order import Sample, micro_batches
from lorabuild.training.validation import validation_seed

if TYPE_CHECKING:
    from lorabuild.nn.trainer import Training


class Feed:
    """The micro-batches of a training, of which `done` updates are made. It knows nothing of the loop: gradients and
    moments are gone with that, and wait for no collector of cycles."""

    def __init__(self, training: Training):
        self.training, self.done = training, 0
        self.ahead: tuple[Any, MicroBatch] | None = None  # what `batch` will be asked for, and what it made
        self.known_texts = self._known_texts() if training.adapter.leaves_text else None

    def batch(self, update: int, micro: int, epoch: int, samples: list[Sample]) -> MicroBatch:
        """Micro-batch `micro` of `update`, ready: the one that was made ahead, if it is that."""
        made, self.ahead = self.ahead, None
        if made is not None and made[0] == (update, micro, epoch, samples):
            return made[1]
        recipe = self.training.recipe
        return self.ready(micro_batch(self.training.data, recipe, recipe["seed"], epoch, samples, update, micro))

    def prepare(self, update: int, micro: int, epoch: int, samples: list[Sample]) -> None:
        """Make the micro-batch that will be asked for next."""
        asked = update, micro, epoch, samples
        self.ahead = asked, self.batch(*asked)

    def ready(self, batch: MicroBatch) -> MicroBatch:
        """The batch on the device, its captions as tokens, or encoded already where that is always the same."""
        training = self.training
        return ready(batch, training.base, training.data.dataset, training.recipe, training.device, self.known_texts)

    def held_out(self) -> list[MicroBatch]:
        """Those that the held-out loss is of."""
        return held_out(self.training.data, self.training.held_back, self.training.recipe)

    def _known_texts(self) -> TextAhead:
        training, recipe = self.training, self.training.recipe
        settings, weighted = training.data.dataset["settings"], recipe.get("weighted_captions", False)
        dtype = DTYPES[recipe["mixed_precision"]]
        return TextAhead(training.base, settings, weighted, training.device, dtype, self._captions_to_come)

    def _captions_to_come(self) -> Iterator[str]:
        """The captions of the held-out loss, and those of this update and of all that follow."""
        for batch in self.held_out():
            yield from batch.captions
        data, recipe, done = self.training.data, self.training.recipe, self.done
        accumulate, seed = recipe["gradient_accumulation_steps"], recipe["seed"]
        dealt = micro_batches(data.images, recipe["train_batch_size"], seed, done * accumulate)
        rest = (recipe["max_train_steps"] - done) * accumulate
        for number, (epoch, samples) in enumerate(islice(dealt, rest)):
            yield from captions_of(data, recipe, seed, epoch, samples, done + number // accumulate)


def ready(
    batch: MicroBatch,
    base: Base,
    dataset: Mapping[str, Any],
    recipe: Mapping[str, Any],
    device: str,
    known_texts: TextAhead | None = None,
) -> MicroBatch:
    """The batch on the device, its captions as tokens, or encoded by `known_texts`."""
    if known_texts and batch.hidden is None:
        hidden, pooled = known_texts(batch.captions)
        batch = replace(batch, hidden=hidden, pooled=pooled)
    elif not known_texts and batch.ids is None:
        weighted = recipe.get("weighted_captions", False)
        ids, emphasis = caption_ids(base, batch.captions, dataset["settings"], weighted)
        batch = replace(batch, ids=ids, emphasis=emphasis)
    return batch.on(device)


def held_out(data: Data, held_back: Data | None, recipe: Mapping[str, Any]) -> list[MicroBatch]:
    """The micro-batches that a training's held-out loss is of: of what is held back from `data`, if anything is."""
    return held_out_batches(held_back or data, recipe, validation_seed(recipe), held_out_count(held_back, recipe))
