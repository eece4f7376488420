"""Train the text encoders by what tags say: each tag's last token names its traits, the end and the padding name all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lorabuild.nn.text import PAD2, TOKENS
from lorabuild.nn.tokenizer import vocabulary
from lorabuild.streams import python_random
from toy.captions import ATTRIBUTES, SEPARATOR, attributes, caption
from toy.configs import TE1, TE2
from toy.learn import Log, Plan, learn
from toy.pictures import picture

SHORT = 40  # tokens of most updates: as long as any caption here, and cheaper than 77
FULL_EVERY = 8
POSITIVE_WEIGHT = 6.0  # few of the attributes are true
_NUMBER = {attribute: number for number, attribute in enumerate(ATTRIBUTES)}
# Standard deviations and gains with which a stack of 32 narrow layers still learns.
EMBEDDING_STD, POSITION_STD, BRANCH_GAIN = 0.6, 0.1, 0.5


def prepare(te1: nn.Module, te2: nn.Module) -> None:
    """Rescale the libraries' random weights in place."""
    with torch.no_grad():
        for encoder in (te1, te2):
            for name, parameter in encoder.named_parameters():
                if "token_embedding" in name:
                    parameter *= EMBEDDING_STD / parameter.std()
                elif "position_embedding" in name:
                    parameter *= POSITION_STD / parameter.std()
                elif name.endswith(("out_proj.weight", "fc2.weight")):
                    parameter *= BRANCH_GAIN


def train(te1: nn.Module, te2: nn.Module, folder: Path, seed: int, batch: int, plan: Plan, log: Log) -> None:
    """Both encoders beside linear heads that are thrown away afterwards."""
    torch.manual_seed(seed)
    heads = nn.ModuleList([nn.Linear(width, len(ATTRIBUTES)) for width in (TE1, TE2, TE2)])
    device = next(te1.parameters()).device
    heads.to(device)
    last: dict[str, tuple[Tensor, Tensor]] = {}

    def loss_at(step: int) -> Tensor:
        length = TOKENS if step % FULL_EVERY == 0 else SHORT
        ids1, ids2, wanted, ends = labelled(_captions(seed, step, batch), length)
        first, second, pooled = states(te1, te2, ids1.to(device), ids2.to(device), ends.to(device))
        found = [head(x) for head, x in zip(heads, (first, second, pooled), strict=True)]
        wanted = wanted.to(device)
        of_all = wanted[torch.arange(batch), ends]
        last.update(tokens=(found[1].detach(), wanted), pooled=(found[2].detach(), of_all))
        weight = torch.tensor(POSITIVE_WEIGHT, device=device)
        targets = (wanted, wanted, of_all)
        losses = [
            binary_cross_entropy_with_logits(x, y, pos_weight=weight) for x, y in zip(found, targets, strict=True)
        ]
        size = sum((x.std() - 1).square() for x in (first, second))  # hidden states of order 1, as the U-Net expects
        return torch.stack(losses).sum() + 1e-3 * size

    def measure() -> str:
        shares = {name: _exact(*both) for name, both in last.items()}
        return "all attributes right: " + ", ".join(f"{share:.2f} of {name}" for name, share in shares.items())

    learn("text", folder, {"te1": te1, "te2": te2, "heads": heads}, loss_at, plan, log, measure)


def _captions(seed: int, step: int, batch: int) -> list[str]:
    numbers = range(step * batch, (step + 1) * batch)
    return [caption(picture(seed, "text", n), python_random(seed, "caption", "text", n)) for n in numbers]


def _exact(found: Tensor, wanted: Tensor) -> float:
    return float(((found > 0) == (wanted > 0)).all(-1).float().mean())


def states(te1: Any, te2: Any, ids1: Tensor, ids2: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden [B, T, C1], hidden [B, T, C2], pooled [B, C2]), as lorabuild.nn.text.encode, of any length T."""
    first = te1(ids1, output_hidden_states=True).hidden_states[-2]
    found = te2(ids2, output_hidden_states=True)
    pooled = te2.text_projection(found.last_hidden_state[torch.arange(len(ids2), device=ids2.device), ends])
    return first, found.hidden_states[-2], pooled


@torch.no_grad()
def conditions(te1: Any, te2: Any, captions: Sequence[str], length: int, batch: int = 128) -> tuple[Tensor, Tensor]:
    """(hidden [N, length, C1 + C2], pooled [N, C2]) of captions, on the CPU."""
    device = next(te1.parameters()).device
    hidden, pooled = [], []
    for start in range(0, len(captions), batch):
        ids1, ids2, _, ends = labelled(captions[start : start + batch], length)
        first, second, one = states(te1, te2, ids1.to(device), ids2.to(device), ends.to(device))
        hidden.append(torch.cat([first, second], dim=2).cpu())
        pooled.append(one.cpu())
    return torch.cat(hidden), torch.cat(pooled)


def labelled(captions: Sequence[str], length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids of either tokenizer [B, T], which attributes each token tells [B, T, A], place of the end [B])."""
    tokens = vocabulary()[0]
    start, end = len(tokens) - 2, len(tokens) - 1
    ids1 = torch.full((len(captions), length), end)
    ids2 = torch.full((len(captions), length), PAD2)
    wanted = torch.zeros(len(captions), length, len(ATTRIBUTES))
    ends = torch.zeros(len(captions), dtype=torch.long)
    for row, text in enumerate(captions):
        ids, marks = [start], []
        for tag in text.split(SEPARATOR) if text else []:
            ids += [*(_ids(",") if len(ids) > 1 else ()), *_ids(tag)]
            marks.append((len(ids) - 1, _numbers(tag)))
        if len(ids) > length - 1:
            raise ValueError(f"{text!r} has more than {length - 2} tokens")
        for place, numbers in marks:
            wanted[row, place, list(numbers)] = 1
        ids.append(end)
        ids1[row, : len(ids)] = ids2[row, : len(ids)] = torch.tensor(ids)
        ends[row] = len(ids) - 1
        everything = sorted({number for _, numbers in marks for number in numbers})
        if everything:
            wanted[row, len(ids) - 1 :, everything] = 1
    return ids1, ids2, wanted, ends


@cache
def _ids(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer()(text).input_ids[1:-1])


@cache
def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokens, merges = vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges)


@cache
def _numbers(tag: str) -> tuple[int, ...]:
    try:
        return tuple(_NUMBER[one] for one in attributes(tag) if one in _NUMBER)
    except ValueError:
        return ()  # a word that is held back
