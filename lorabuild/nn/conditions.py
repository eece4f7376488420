"""Turn a prompt of any length into what the U-Net is conditioned on: chunks of 75 tokens, with weights of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorabuild.nn.attention_weights import weighted_parts
from lorabuild.nn.base import Base
from lorabuild.nn.text import PAD2, encode

CHUNK = 75  # tokens of text in one run of a text encoder, between its start and its end token


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens of the text itself, without start and end."""
    return len(_tokens(tokenizer, prompt)[0])


def condition(base: Base, prompts: Sequence[str], device: str) -> tuple[Tensor, Tensor]:
    """(hidden states [B, 75·n + 2, C], pooled [B, C2]) of `prompts`, all in as many chunks as the longest one needs.

    Each chunk of 75 tokens goes through the text encoders with a start and an end token of its own; of these the first
    and the last stay (as kohya's trainer has it for max_token_length 150 and 225). The pooled vector is the first chunk's.
    """
    one = [_tokens(base.tokenizer1, prompt) for prompt in prompts]
    two = [_tokens(base.tokenizer2, prompt) for prompt in prompts]
    chunks = max(-(-len(ids) // CHUNK) for ids, _ in (*one, *two)) or 1
    ids1 = _ids(one, chunks, base.tokenizer1, base.tokenizer1.eos_token_id)
    ids2 = _ids(two, chunks, base.tokenizer2, PAD2)
    hidden, pooled = encode(base.te1, base.te2, ids1.to(device), ids2.to(device), base.tokenizer2.eos_token_id)
    widths = base.te1.config.hidden_size, base.te2.config.hidden_size
    joined = _joined(hidden, chunks).float().split(widths, dim=2)
    weighted = [
        _weighted(part, torch.tensor([_weights(weights, chunks) for _, weights in found], device=part.device))
        for part, found in zip(joined, (one, two), strict=True)
    ]
    return torch.cat(weighted, dim=2), pooled[::chunks]


def _tokens(tokenizer: Any, prompt: str) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in weighted_parts(prompt):
        found = tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text.strip() else []
        ids += found
        weights += [weight] * len(found)
    return ids, weights


def _ids(found: Sequence[tuple[list[int], list[float]]], chunks: int, tokenizer: Any, pad: int) -> Tensor:
    """[B·n, 77]: start, up to 75 tokens, end, padding."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = []
    for ids, _ in found:
        for number in range(chunks):
            row = [start, *ids[number * CHUNK : (number + 1) * CHUNK], end]
            rows.append(row + [pad] * (CHUNK + 2 - len(row)))
    return torch.tensor(rows)


def _joined(hidden: Tensor, chunks: int) -> Tensor:
    """[B·n, 77, C] -> [B, 75·n + 2, C]."""
    hidden = hidden.view(-1, chunks, *hidden.shape[1:])
    text = hidden[:, :, 1:-1].flatten(1, 2)
    return torch.cat([hidden[:, 0, :1], text, hidden[:, -1, -1:]], dim=1)


def _weights(weights: Sequence[float], chunks: int) -> list[float]:
    return [1.0, *weights, *[1.0] * (chunks * CHUNK - len(weights)), 1.0]


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """Each token's states [B, T, C] times its weight [B, T], at the mean that they had before."""
    if (weights == 1).all():
        return hidden
    before = hidden.mean(dim=(1, 2), keepdim=True)
    scaled = hidden * weights[..., None]
    return scaled * (before / scaled.mean(dim=(1, 2), keepdim=True))
