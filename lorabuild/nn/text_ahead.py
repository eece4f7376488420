"""Encode the captions of a training whose text encoders stay as they are: each once, ahead, and by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lorabuild.nn.base import Base
from lorabuild.nn.present import HOST, present
from lorabuild.nn.text import caption_ids, hidden_and_pooled, hidden_states

# Captions that are encoded in one visit of the encoders to a GPU: seconds of work for a move of less than one.
AHEAD = 256
LOOKED = 4096  # draws that are looked through for them
KEPT = 2048  # captions whose encodings are kept, 315 KB each in bf16 at 75 tokens: 650 MB of the host's memory
TOGETHER = 16  # captions a pass on a GPU; on a CPU one, so that no caption's bytes hang on its company


class TextAhead:
    """(hidden states [B, T, C1 + C2], pooled [B, C2]) of captions, as `text_conditions` makes them, without gradients,
    computed in `dtype` on the device, in the host's memory.

    `coming` gives the captions that will be asked for, in about that order. When one is asked for that is not known,
    the encoders come to the device, one after the other, encode it and the next ones to come, and go back to where they
    were. What is known is kept in the host's memory, what was not asked for longest goes first.
    """

    def __init__(
        self,
        base: Base,
        settings: Mapping[str, Any],
        weighted: bool = False,
        device: str = HOST,
        dtype: torch.dtype = torch.float32,
        coming: Callable[[], Iterable[str]] = tuple,
        ahead: int | None = None,
        kept: int = KEPT,
    ):
        self._base, self._settings, self._weighted, self._device = base, settings, weighted, device
        self._dtype = dtype
        on_host = device == HOST  # where the encoders need not come and go, nothing is won by a long wait at the start
        self._coming, self._kept, self._together = coming, kept, 1 if on_host else TOGETHER
        self._ahead = (0 if on_host else AHEAD) if ahead is None else ahead
        # caption -> [T, C1 + C2], [C2]; what was asked for last is last
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        if any(caption not in self._known for caption in captions):
            self._learn(captions)
        for caption in captions:
            self._known[caption] = self._known.pop(caption)
        hidden, pooled = zip(*(self._known[caption] for caption in captions), strict=True)
        return torch.stack(hidden), torch.stack(pooled)

    def _learn(self, captions: Sequence[str]) -> None:
        soon = islice(self._coming(), LOOKED) if self._ahead else ()
        wanted = list(dict.fromkeys([*captions, *soon]))
        new = [caption for caption in wanted if caption not in self._known][: max(self._ahead, len(set(captions)))]
        for caption in reversed(wanted):  # what comes soonest goes last
            if caption in self._known:
                self._known[caption] = self._known.pop(caption)
        self._known |= self._encoded(new)
        for caption in list(self._known)[: -max(self._kept, len(set(captions)) + len(new))]:
            del self._known[caption]

    @torch.no_grad()
    def _encoded(self, captions: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        base, end, device = self._base, self._base.tokenizer2.eos_token_id, self._device
        parts = [captions[start : start + self._together] for start in range(0, len(captions), self._together)]
        texts = [caption_ids(base, part, self._settings, self._weighted) for part in parts]
        firsts, seconds = [], []
        with torch.autocast(device, self._dtype, enabled=self._dtype.itemsize < 4):
            with present([base.te1], device):
                for ids, weights in texts:
                    firsts.append(hidden_states(base.te1, *self._of(0, ids, weights), base.clip_skip).to(HOST))
            with present([base.te2], device):
                for ids, weights in texts:
                    chosen, scales = self._of(1, ids, weights)
                    found = hidden_and_pooled(base.te2, chosen, end, scales, base.clip_skip)
                    seconds.append([one.to(HOST) for one in found])
        hidden = [row for one, (two, _) in zip(firsts, seconds, strict=True) for row in torch.cat([one, two], dim=2)]
        pooled = [row for _, rows in seconds for row in rows]
        return dict(zip(captions, zip(hidden, pooled, strict=True), strict=True))

    def _of(self, number: int, ids: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What is the first (0) or the second encoder's, on the device."""
        own = None if weights is None else weights[:, number].to(self._device)
        return ids[:, number].to(self._device), own
