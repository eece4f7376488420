"""Turn captions into what SDXL's U-Net is conditioned on: hidden states of two encoders, a pooled vector, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorabuild.bases.layout import CLIP_SKIP
from lorabuild.data.emphasis import weighted_parts

if TYPE_CHECKING:
    from lorabuild.nn.base import Base

TOKENS = 77  # of a chunk: start, 75 tokens of text, end
TEXT = TOKENS - 2
PAD2 = 0  # "!": the second text encoder was trained with it as padding; the first one pads with its end token


def text_conditions(
    base: Base, captions: Sequence[str], settings: Mapping[str, Any], weighted: bool = False, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """(hidden states, pooled), as `encode` has them, of captions under these `[dataset]` settings.

    `weighted`: (this:1.3) in a caption scales the hidden states of its words.
    """
    ids, weights = caption_ids(base, captions, settings, weighted)
    return conditions_of(base, ids.to(device), None if weights is None else weights.to(device))


def caption_ids(
    base: Base, captions: Sequence[str], settings: Mapping[str, Any], weighted: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(token ids, their weights if `weighted`), each [B, 2, n * 77] with a row for each tokenizer: on the CPU."""
    length, first, second = settings.get("max_token_length", TEXT), base.tokenizer1, base.tokenizer2
    if not weighted:
        return torch.stack(tokenise(first, second, captions, length), dim=1), None
    ids1, one = weighted_ids(first, captions, first.eos_token_id, length)
    ids2, two = weighted_ids(second, captions, PAD2, length)
    return torch.stack([ids1, ids2], dim=1), torch.stack([one, two], dim=1)


def conditions_of(base: Base, ids: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(hidden states, pooled), as `encode` has them, of what `caption_ids` gives, on the device of the encoders."""
    end = base.tokenizer2.eos_token_id
    both = (None, None) if weights is None else weights.unbind(1)
    return encode(base.te1, base.te2, *ids.unbind(1), end, both, base.clip_skip)


def tokenise(
    tokenizer1: Any, tokenizer2: Any, captions: Sequence[str], max_token_length: int = TEXT
) -> tuple[Tensor, Tensor]:
    """Token ids of both tokenizers, each [B, n * 77]: n chunks of 75 tokens of text; what is beyond them is cut.

    One chunk is start, text, end, padding. Of more, each begins with a start, too, and ends with an end where its text
    goes on; one without text is an end and padding, as of kohya's trainer.
    """
    ids1 = _padded(tokenizer1, captions, tokenizer1.eos_token_id, max_token_length)
    ids2 = _padded(tokenizer2, captions, PAD2, max_token_length)
    return chunks(ids1, tokenizer1.eos_token_id, tokenizer1.eos_token_id), chunks(ids2, tokenizer2.eos_token_id, PAD2)


def encode(
    te1: Any,
    te2: Any,
    ids1: Tensor,
    ids2: Tensor,
    end: int,
    weights: Sequence[Tensor | None] = (None, None),
    clip_skip: int = CLIP_SKIP,
) -> tuple[Tensor, Tensor]:
    """(hidden states [B, T, C1 + C2], pooled [B, C2]) of token ids [B, n * 77], T = 75 n + 2.

    `end` is the id of the second's end token, `weights` [B, n * 77] scale the hidden states of either encoder. Each
    chunk of 77 is encoded by itself. Hidden states are the `clip_skip`-th from the last of each encoder, by default those
    before the last layer, without the final norm. The pooled vector is the second encoder's last state of the first chunk, after its final norm, at the *first*
    end token, projected (SDXL, Podell et al. 2023, as its reference code and kohya's trainer do it). transformers' own
    pooled output is not used: in configurations whose eos_token_id is 2 it looks for another token.
    """
    first = hidden_states(te1, ids1, weights[0], clip_skip)
    second, pooled = hidden_and_pooled(te2, ids2, end, weights[1], clip_skip)
    return torch.cat([first, second], dim=2), pooled


def hidden_states(encoder: Any, ids: Tensor, weights: Tensor | None = None, clip_skip: int = CLIP_SKIP) -> Tensor:
    """The part of the hidden states that is an encoder's [B, T, C], of what `encode` takes."""
    found = encoder(ids.reshape(-1, TOKENS), output_hidden_states=True)
    return _weighted(found.hidden_states[-clip_skip], len(ids), weights)


def hidden_and_pooled(
    te2: Any, ids: Tensor, end: int, weights: Tensor | None = None, clip_skip: int = CLIP_SKIP
) -> tuple[Tensor, Tensor]:
    """The second encoder's hidden states [B, T, C2], and the pooled vector [B, C2], of what `encode` takes."""
    count, ids = len(ids), ids.reshape(-1, TOKENS)
    found = te2(ids, output_hidden_states=True)
    begins = torch.arange(0, len(ids), len(ids) // count, device=ids.device)
    position = (ids == end).int().argmax(dim=1)[begins]
    pooled = te2.text_projection(found.last_hidden_state[begins, position])
    return _weighted(found.hidden_states[-clip_skip], count, weights), pooled


def _weighted(states: Tensor, count: int, weights: Tensor | None) -> Tensor:
    states = joined(states.unflatten(0, (count, -1)))
    if weights is None:
        return states
    return states * joined(weights.view(count, -1, TOKENS, 1)).to(states.dtype)


def chunks(ids: Tensor, end: int, pad: int) -> Tensor:
    """[B, 75 n + 2] -> [B, n * 77]: every 75 tokens of text between the first and the last token of the whole.

    A chunk that is full of text ends with `end`; one that begins with padding has an end before it.
    """
    count = (ids.shape[1] - 2) // TEXT
    if count == 1:
        return ids
    text = ids[:, 1:-1].unflatten(1, (count, TEXT))
    first, last = (edge[:, None, None].expand(-1, count, 1) for edge in (ids[:, 0], ids[:, -1]))
    cut = torch.cat([first, text, last], dim=2)
    full = (cut[:, :, -2] != end) & (cut[:, :, -2] != pad)
    cut[:, :, -1] = torch.where(full, end, cut[:, :, -1])
    cut[:, :, 1] = torch.where(cut[:, :, 1] == pad, end, cut[:, :, 1])
    return cut.flatten(1)


def joined(states: Tensor) -> Tensor:
    """[B, n, 77, C] -> [B, 75 n + 2, C]: the first start, the text of all chunks, the last token."""
    if states.shape[1] == 1:
        return states[:, 0]
    return torch.cat([states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]], dim=1)


def size_ids(
    original: Sequence[tuple[int, int]], crop: Sequence[tuple[int, int]], target: Sequence[tuple[int, int]]
) -> Tensor:
    """SDXL's size conditioning [B, 6]: original height and width, top and left of the crop, trained height and width.

    Arguments are as data sets have them: (width, height) and (left, top). The crop is the one that was really made, in
    pixels of the resized image.
    """
    rows = [(h, w, top, left, th, tw) for (w, h), (left, top), (tw, th) in zip(original, crop, target, strict=True)]
    return torch.tensor(rows, dtype=torch.float32)


def _padded(tokenizer: Any, captions: Sequence[str], pad: int, max_token_length: int) -> Tensor:
    length = max_token_length + 2
    rows = tokenizer(list(captions), truncation=True, max_length=length).input_ids
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def weighted_ids(tokenizer: Any, captions: Sequence[str], pad: int, max_token_length: int) -> tuple[Tensor, Tensor]:
    """(ids, weights), each [B, n * 77], of captions with weights in them; each part is tokenised by itself."""
    rows, weights = [], []
    for caption in captions:
        ids: list[int] = []
        scales: list[float] = []
        for text, weight in weighted_parts(caption):
            part = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_token_length).input_ids
            ids += part
            scales += [weight] * len(part)
        ids, scales = ids[:max_token_length], scales[:max_token_length]
        rest = max_token_length - len(ids)
        rows.append([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[pad] * rest])
        weights.append([1.0, *scales, *[1.0] * (rest + 1)])
    flat = torch.tensor(weights)
    text = flat[:, 1:-1].unflatten(1, (-1, TEXT))
    around = torch.nn.functional.pad(text, (1, 1), value=1.0)
    return chunks(torch.tensor(rows), tokenizer.eos_token_id, pad), around.flatten(1)
