"""Text for SDXL: chunks of 75 tokens, weights of words, sizes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from tiny_base import tiny_base

from lorabuild.data.buckets import peer_crop
from lorabuild.nn.text import chunks, encode, joined, size_ids, text_conditions, tokenise

GOLDENS = Path(__file__).parent / "goldens"
CHUNKS = json.loads((GOLDENS / "chunks.json").read_text())["rows"]
SIZES = json.loads((GOLDENS / "size_ids.json").read_text())["rows"]
START, END, PAD = 98, 99, 0


class Traced:
    """A text encoder whose states are the places of its tokens."""

    def __call__(self, ids: torch.Tensor, output_hidden_states: bool):
        places = torch.arange(ids.numel(), dtype=torch.float32).view(*ids.shape, 1)
        return SimpleNamespace(hidden_states=[places, places], last_hidden_state=places)

    def text_projection(self, states: torch.Tensor) -> torch.Tensor:
        return states


@pytest.mark.parametrize(("count", "shape", "places", "pooled"), CHUNKS)
def test_chunks_are_joined_as_sd_scripts_joins_them(count: int, shape: list[int], places: list[int], pooled: list[int]):
    states = torch.arange(2 * count * 77).view(2, count, 77, 1)
    assert list(joined(states).shape) == shape
    assert joined(states)[0, :, 0].tolist() == places
    ids = torch.full((2, count * 77), 5)
    ids[0, 3] = ids[1, 2] = END
    hidden, pool = encode(Traced(), Traced(), ids, ids, END)
    assert hidden[0, :, 0].tolist() == places
    assert pool[:, 0].tolist() == pooled


@pytest.mark.parametrize(
    ("length", "words", "edges"),
    [
        (75, 10, [(5, PAD)]),
        (150, 10, [(5, PAD), (END, PAD)]),
        (150, 75, [(5, END), (END, PAD)]),
        (150, 76, [(5, END), (5, PAD)]),
        (150, 150, [(5, END), (5, END)]),
        (225, 160, [(5, END), (5, END), (5, PAD)]),
    ],
)
def test_a_chunk_ends_where_its_text_goes_on_and_an_empty_one_begins_with_its_end(
    length: int, words: int, edges: list[tuple[int, int]]
):
    ids = torch.tensor([[START, *[5] * words, END, *[PAD] * length][: length + 2]])
    cut = chunks(ids, END, PAD).view(-1, 77)
    assert [(row[1].item(), row[-1].item()) for row in cut] == edges
    assert set(cut[:, 0].tolist()) == {START}
    own = chunks(torch.where(ids == PAD, END, ids), END, END).view(-1, 77)  # the first encoder's padding is its end
    assert own[:, -1].tolist() == [END] * len(own)


@torch.no_grad()
def test_a_caption_of_75_tokens_keeps_its_words_and_longer_ones_get_more():
    base = tiny_base()
    short, long = "ember, red", ", ".join(["ember"] * 60)
    ids, _ = tokenise(base.tokenizer1, base.tokenizer2, [short, long], 225)
    assert ids.shape == (2, 231)
    plain, pooled = text_conditions(base, [short, long], {})
    wide, wide_pooled = text_conditions(base, [short, long], {"max_token_length": 225})
    assert (plain.shape[1], wide.shape[1]) == (77, 227)
    torch.testing.assert_close(wide[:, :76], plain[:, :76])
    torch.testing.assert_close(wide_pooled, pooled)
    other, _ = text_conditions(base, [short, long + ", blue"], {"max_token_length": 225})
    assert torch.equal(other[0], wide[0]) and not torch.equal(other[1], wide[1])


@torch.no_grad()
@pytest.mark.parametrize("length", [75, 150])
def test_weights_scale_the_states_of_their_words_alone(length: int):
    base, settings = tiny_base(), {"max_token_length": length}
    tags = "red, " * 40
    plain, pooled = text_conditions(base, [tags + "ember, sit"], settings)
    same, _ = text_conditions(base, [tags + "ember, sit"], settings, weighted=True)
    weighted, weighted_pooled = text_conditions(base, [tags + "(ember:1.5), sit"], settings, weighted=True)
    assert torch.equal(same, plain) and torch.equal(weighted_pooled, pooled)
    ratio = (weighted / plain)[0].mean(dim=1)
    there = (ratio - 1).abs() > 1e-3
    ids = base.tokenizer1("ember", add_special_tokens=False).input_ids
    assert there.sum() == (len(ids) if length == 150 else 0), "what is cut off weighs nothing"
    assert ratio[there].tolist() == pytest.approx([1.5] * int(there.sum()), rel=1e-4)


def test_sizes_are_those_of_sd_scripts_where_its_crop_is_asked_for():
    for size, bucket, flip, expected in SIZES:
        crop = peer_crop(tuple(size), tuple(bucket), flip)
        assert size_ids([size], [crop], [bucket]).tolist() == [expected], (size, flip)


def test_sizes_are_embedded_as_sd_scripts_embeds_them():
    with np.load(GOLDENS / "size_embeddings.npz") as golden:
        pairs = [golden[name][:, ::-1].tolist() for name in ("orig_hw", "crop_tl", "target_hw")]
        ids = size_ids(*pairs)
        embedded = get_timestep_embedding(ids.flatten(), 256, flip_sin_to_cos=True, downscale_freq_shift=0)
        # cosines of large numbers in float32
        torch.testing.assert_close(embedded.view(2, -1), torch.from_numpy(golden["embeddings"]), rtol=0, atol=2e-4)
