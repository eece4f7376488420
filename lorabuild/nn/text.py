"""Turn captions into what SDXL's U-Net is conditioned on: hidden states of two encoders, a pooled vector, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOKENS = 77  # start, 75 tokens of text, end
PAD2 = 0  # "!": the second text encoder was trained with it as padding; the first one pads with its end token


def tokenise(tokenizer1: Any, tokenizer2: Any, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids of both tokenizers, each [B, 77]: start, at most 75 tokens (the rest is cut), end, padding."""
    return (
        _padded(tokenizer1, captions, tokenizer1.eos_token_id),
        _padded(tokenizer2, captions, PAD2),
    )


def encode(te1: Any, te2: Any, ids1: Tensor, ids2: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """(hidden states [B, T, C1 + C2], pooled [B, C2]) of token ids [B, T]; `end` is the id of the second's end token.

    Hidden states are those before the last layer of each encoder, without the final norm. The pooled vector is the
    second encoder's last state, after its final norm, at the *first* end token, projected (SDXL, Podell et al. 2023,
    as its reference code and kohya's trainer do it). transformers' own pooled output is not used: in configurations
    whose eos_token_id is 2 it looks for another token.
    """
    first = te1(ids1, output_hidden_states=True)
    second = te2(ids2, output_hidden_states=True)
    rows = torch.arange(len(ids2), device=ids2.device)
    position = (ids2 == end).int().argmax(dim=1)
    pooled = te2.text_projection(second.last_hidden_state[rows, position])
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=2), pooled


def size_ids(
    original: Sequence[tuple[int, int]], crop: Sequence[tuple[int, int]], target: Sequence[tuple[int, int]]
) -> Tensor:
    """SDXL's size conditioning [B, 6]: original height and width, top and left of the crop, trained height and width.

    Arguments are as data sets have them: (width, height) and (left, top). The crop is the one that was really made, in
    pixels of the resized image.
    """
    rows = [(h, w, top, left, th, tw) for (w, h), (left, top), (tw, th) in zip(original, crop, target, strict=True)]
    return torch.tensor(rows, dtype=torch.float32)


def _padded(tokenizer: Any, captions: Sequence[str], pad: int) -> Tensor:
    rows = tokenizer(list(captions), truncation=True, max_length=TOKENS).input_ids
    return torch.tensor([row + [pad] * (TOKENS - len(row)) for row in rows])
