"""Prompts of any length and with weights, as the U-Net sees them."""

from __future__ import annotations

import pytest
import torch
from tiny_base import tiny_base

from lorabuild.data.emphasis import weighted_parts
from lorabuild.nn.conditions import condition, count_tokens
from lorabuild.nn.text import encode, tokenise


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a fox", [("a fox", 1.0)]),
        ("a (red:1.2) fox", [("a ", 1.0), ("red", 1.2), (" fox", 1.0)]),
        ("((red)) [fox]", [("red", 1.21), (" ", 1.0), ("fox", 1 / 1.1)]),
        ("(a (red:1.5):0.5)", [("a ", 0.5), ("red", 0.75)]),
        (r"ember \(fox\)", [("ember (fox)", 1.0)]),
        ("time 10:30, smile :) here", [("time 10:30, smile :) here", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("", []),
    ],
)
def test_weights_are_read_as_uis_do(prompt: str, parts: list):
    assert weighted_parts(prompt) == [(text, pytest.approx(weight)) for text, weight in parts]


@torch.no_grad()
def test_a_short_prompt_is_what_training_sees():
    base = tiny_base()
    texts = ["ember, red fox", ""]
    ids = tokenise(base.tokenizer1, base.tokenizer2, texts)
    hidden, pooled = encode(base.te1, base.te2, *ids, base.tokenizer2.eos_token_id)
    found = condition(base, texts, "cpu")
    assert torch.equal(found[0], hidden) and torch.equal(found[1], pooled)


@torch.no_grad()
def test_a_long_prompt_goes_in_chunks_of_75():
    base = tiny_base()
    words = ["fox"] * 75 + ["red", "cat"]
    assert count_tokens(base.tokenizer1, " ".join(words)) == 77
    hidden, pooled = condition(base, [" ".join(words), "dog"], "cpu")
    assert hidden.shape[:2] == (2, 152)
    first, first_pooled = condition(base, [" ".join(words[:75])], "cpu")
    second, _ = condition(base, ["red cat"], "cpu")
    assert torch.allclose(hidden[0, :76], first[0, :76], atol=1e-6)
    assert torch.allclose(hidden[0, 76:], second[0, 1:], atol=1e-6)
    assert torch.allclose(pooled[0], first_pooled[0], atol=1e-6), "the first chunk's"


@torch.no_grad()
def test_a_weight_moves_its_own_tokens_and_keeps_the_mean():
    base = tiny_base()
    plain, _ = condition(base, ["a red fox"], "cpu")
    heavy, _ = condition(base, ["a (red:1.5) fox"], "cpu")
    width = base.te1.config.hidden_size
    for one, other in zip(plain.split(width, 2)[:1], heavy.split(width, 2)[:1], strict=True):
        ratio = (other / one)[0].median(dim=1).values
        assert ratio[2] / ratio[1] == pytest.approx(1.5, rel=1e-4)
        assert other.mean().item() == pytest.approx(one.mean().item(), rel=1e-4)
