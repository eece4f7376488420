"""The loss of what a base, with whatever adapter or file stands on it, predicts of micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lorabuild.nn.base import DTYPES, Base
from lorabuild.nn.batches import MicroBatch
from lorabuild.nn.objective import Objective
from lorabuild.nn.present import present
from lorabuild.nn.text import conditions_of


def sample_losses(
    base: Base, batch: MicroBatch, objective: Objective, mixed_precision: str, device: str, learns_text: bool = False
) -> Tensor:
    """The loss of each sample [B] of a batch that is ready. Noise is added in float32, as the loss is taken in float32.

    `learns_text`: gradients reach the text encoders, where captions are encoded here.
    """
    dtype = DTYPES[mixed_precision]
    noisy, target = objective.noisy(batch)
    with torch.autocast(device, dtype, enabled=dtype.itemsize < 4):
        hidden, pooled = _conditions(base, batch, device, learns_text)
        conditions = {"text_embeds": pooled, "time_ids": batch.sizes}
        prediction = base.unet(noisy.to(dtype), batch.timesteps, hidden, added_cond_kwargs=conditions).sample
    return objective.losses(prediction, target, batch)


@torch.no_grad()
def mean_loss(batches: Iterable[MicroBatch], losses: Callable[[MicroBatch], Tensor]) -> float:
    """The mean over all samples of the batches, of which `losses` gives those of a batch, [B]."""
    return torch.cat([losses(batch) for batch in batches]).mean().item()


def _conditions(base: Base, batch: MicroBatch, device: str, learns_text: bool) -> tuple[Tensor, Tensor]:
    """(hidden states, pooled), by the text encoders where they are trained, or an adapter's dropout is on them."""
    if batch.hidden is not None and batch.pooled is not None:
        return batch.hidden, batch.pooled
    learns = torch.is_grad_enabled() and learns_text
    with torch.set_grad_enabled(learns), present([base.te1, base.te2], device):
        return conditions_of(base, batch.ids, batch.emphasis)
