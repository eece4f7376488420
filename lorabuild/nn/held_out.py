"""Measure files by the held-out loss of a training's log: on the same micro-batches, in the same precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lorabuild.hashing import digest_bytes, digest_json
from lorabuild.nn.base import DTYPES, Base
from lorabuild.nn.batches import Data, MicroBatch
from lorabuild.nn.feed import held_out, ready
from lorabuild.nn.latents import open_latents
from lorabuild.nn.losses import mean_loss, sample_losses
from lorabuild.nn.objective import Objective, plain
from lorabuild.nn.text_ahead import TextAhead
from lorabuild.training.order import batches_per_epoch
from lorabuild.training.updates import counted
from lorabuild.training.validation import split


@dataclass(frozen=True)
class Yardstick:
    """What a training's held-out loss is of: `batches` on the CPU, of pictures that it has never seen if `unseen`.

    `learns_text`: whether the training learns in the text encoders. Then it encodes the captions of a batch together, else
    each by itself, which rounds otherwise in the last digits.
    """

    dataset: Mapping[str, Any]
    recipe: Mapping[str, Any]
    prediction_type: str
    learns_text: bool
    batches: list[MicroBatch]
    unseen: bool

    @classmethod
    def of(
        cls,
        dataset: Mapping[str, Any],
        latents: Path,
        recipe: Mapping[str, Any],
        prediction_type: str,
        learns_text: bool,
    ) -> Yardstick:
        """That of a training by `recipe` on a dataset.json, whose packed latents lie at `latents`."""
        trained, others = split(dataset["images"], recipe)
        recipe = counted(recipe, batches_per_epoch(trained, recipe["train_batch_size"]))
        data = Data({**dataset, "images": trained}, open_latents(latents))
        held_back = replace(data, dataset={**dataset, "images": others}) if others else None
        return cls(dataset, recipe, prediction_type, learns_text, held_out(data, held_back, recipe), bool(others))

    @property
    def samples(self) -> int:
        """How many noised pictures the loss is the mean of."""
        return sum(len(batch.captions) for batch in self.batches)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that shapes a loss, but for the base and what stands on it."""
        return {
            "batches": digest_json([_content(batch) for batch in self.batches]),
            "weighted_captions": self.recipe.get("weighted_captions", False),
            "max_token_length": self.dataset["settings"].get("max_token_length"),
            "mixed_precision": self.recipe["mixed_precision"],
            "prediction_type": self.prediction_type,
            "learns_text": self.learns_text,
        }

    def loss(self, base: Base, device: str, stepped: Callable[[], None] = lambda: None) -> float:
        """The loss of the base with what stands on it now. `stepped` is called before each batch, and may raise."""
        recipe, precision = self.recipe, self.recipe["mixed_precision"]
        objective = Objective.of(plain(recipe), self.prediction_type, device)
        texts = None if self.learns_text else self._texts(base, device)

        def losses(batch: MicroBatch) -> Tensor:
            stepped()
            batch = ready(batch, base, self.dataset, recipe, device, texts)
            return sample_losses(base, batch, objective, precision, device)

        return mean_loss(self.batches, losses)

    def _texts(self, base: Base, device: str) -> TextAhead:
        captions = [caption for batch in self.batches for caption in batch.captions]
        weighted, dtype = self.recipe.get("weighted_captions", False), DTYPES[self.recipe["mixed_precision"]]
        return TextAhead(base, self.dataset["settings"], weighted, device, dtype, lambda: captions)


def _content(batch: MicroBatch) -> dict[str, Any]:
    """What a batch holds, as plain values."""
    return {
        name: digest_bytes(value.contiguous().numpy().tobytes()) if isinstance(value, Tensor) else value
        for name, value in vars(batch).items()
    }
