"""Turn a prompt of any length into what the U-Net is conditioned on: chunks of 75 tokens, with weights of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorabuild.data.emphasis import weighted_parts
from lorabuild.nn.base import Base
from lorabuild.nn.text import PAD2, TEXT, TOKENS, encode, joined, weighted_ids


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens of the text itself, without start and end."""
    parts = [text for text, _ in weighted_parts(prompt)]
    return sum(len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for text in parts)


def condition(base: Base, prompts: Sequence[str], device: str) -> tuple[Tensor, Tensor]:
    """(hidden states [B, 75·n + 2, C], pooled [B, C2]) of `prompts`, all in as many chunks as the longest one needs.

    Training has its chunks so with max_token_length 150 and 225. `(this:1.3)` scales the states of its words, at the mean
    that they had before, as A1111's web UI does.
    """
    first, second = base.tokenizer1, base.tokenizer2
    longest = max(count_tokens(tokenizer, prompt) for tokenizer in (first, second) for prompt in prompts)
    length = TEXT * max(1, -(-longest // TEXT))
    ids1, weights1 = weighted_ids(first, prompts, first.eos_token_id, length)
    ids2, weights2 = weighted_ids(second, prompts, PAD2, length)
    ids = ids1.to(device), ids2.to(device)
    hidden, pooled = encode(base.te1, base.te2, *ids, second.eos_token_id, clip_skip=base.clip_skip)
    parts = hidden.split((base.te1.config.hidden_size, base.te2.config.hidden_size), dim=2)
    weighted = [
        _weighted(part.float(), weights.to(device)) for part, weights in zip(parts, (weights1, weights2), strict=True)
    ]
    return torch.cat(weighted, dim=2), pooled


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """Each token's states [B, T, C] times its weight [B, n * 77], at the mean that they had before."""
    scaled = hidden * joined(weights.view(len(hidden), -1, TOKENS, 1))
    if (weights == 1).all():
        return hidden
    return scaled * (hidden.mean(dim=(1, 2), keepdim=True) / scaled.mean(dim=(1, 2), keepdim=True))
