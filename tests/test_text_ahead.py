"""Captions of frozen text encoders are encoded once, and where they lie while they do not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import SETTINGS, outputs, tiny_base, training

from lorabuild.lora.adapter_shape import Shape
from lorabuild.nn import feed
from lorabuild.nn.adapter import adapted
from lorabuild.nn.base import Base
from lorabuild.nn.present import present
from lorabuild.nn.text import text_conditions
from lorabuild.nn.text_ahead import TextAhead
from lorabuild.stages.train import run

CAPTIONS = ["ember, red", "ember, sit, 1", "", "a, b, c"]


class Counted:
    """A text encoder that tells what it was given, and where it was asked to go."""

    def __init__(self, encoder: Any, told: list[str], device: str = "cpu"):
        self._encoder, self.told, self.device = encoder, told, torch.device(device)

    def __call__(self, ids: torch.Tensor, **kwargs: Any) -> Any:
        self.told.append(f"{len(ids)} on {self.device.type}")
        return self._encoder(ids, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def to(self, device: str) -> None:
        self.device = torch.device(device)
        self.told.append(f"to {self.device.type}")


def counted(device: str = "cpu") -> tuple[Base, list[str]]:
    base, told = tiny_base(), []
    return Base(
        base.unet, Counted(base.te1, told, device), Counted(base.te2, [], device), base.tokenizer1, base.tokenizer2
    ), told


@pytest.mark.parametrize("settings", [SETTINGS, SETTINGS | {"max_token_length": 150}])
@torch.no_grad()
def test_a_caption_has_the_same_bytes_alone_in_company_and_remembered(settings: dict[str, Any]):
    base, told = counted()
    ahead = TextAhead(base, settings)
    hidden, pooled = ahead(CAPTIONS)
    again, vector = ahead([CAPTIONS[2], CAPTIONS[0]])
    assert len(told) == len(CAPTIONS), "what is known is not encoded again"
    assert torch.equal(again[1], hidden[0]) and torch.equal(vector[0], pooled[2])
    for number, caption in enumerate(CAPTIONS):
        one, other = text_conditions(tiny_base(), [caption], settings)
        assert torch.equal(hidden[number], one[0]) and torch.equal(pooled[number], other[0])
    together = text_conditions(tiny_base(), CAPTIONS, settings)
    torch.testing.assert_close((hidden, pooled), together)


def test_what_is_to_come_is_encoded_in_the_same_visit():
    base, told = counted()
    ahead = TextAhead(base, SETTINGS, coming=lambda: iter([*CAPTIONS, "later"]), ahead=3)
    ahead(CAPTIONS[:1])
    assert len(told) == 3
    ahead(CAPTIONS[:3])
    assert len(told) == 3
    ahead(CAPTIONS)
    assert len(told) == 5, "the next visit takes the rest"


def test_as_many_captions_are_kept_as_are_allowed_and_the_oldest_goes_first():
    base, told = counted()
    ahead = TextAhead(base, SETTINGS, kept=2)
    ahead(["a"]), ahead(["b"]), ahead(["a"]), ahead(["c"])
    told.clear()
    ahead(["a"]), ahead(["c"])
    assert not told
    ahead(["b"])
    assert len(told) == 1
    ahead(["a", "b", "c"])  # more than are kept, and one of them was dropped
    assert ahead(["c", "b", "a"])[0].shape[0] == 3


def test_no_more_are_kept_than_are_allowed_however_many_are_to_come():
    base, told = counted()
    coming = ["a", "b", "c", "d", "e", "f"]
    ahead = TextAhead(base, SETTINGS, coming=lambda: iter(coming), ahead=2, kept=3)
    ahead(["a"]), ahead(["c"]), ahead(["e"])
    assert len(ahead._known) == 3 and len(told) == 6
    coming[:] = ["g", "f", "e", "b"]  # of what is known what comes latest makes way
    ahead(["g"])
    assert set(ahead._known) == {"e", "f", "g"}


def test_encoders_come_for_a_visit_and_go_back():
    """On a device that is called otherwise, as there is no other one here."""
    base, told = counted(device="meta")
    TextAhead(base, SETTINGS, coming=lambda: iter(CAPTIONS), ahead=9)(CAPTIONS[:2])
    assert told == ["to cpu", *["1 on cpu"] * 4, "to meta"]
    assert base.te1.device.type == base.te2.device.type == "meta"


def test_present_moves_nothing_that_is_there_and_brings_back_after_an_error():
    base, told = counted()
    with present([base.te1], "cpu"):
        pass
    assert not told
    base, told = counted(device="meta")
    with pytest.raises(ValueError), present([base.te1], "cpu"):
        raise ValueError
    assert told == ["to cpu", "to meta"]


def test_a_frozen_encoder_encodes_each_caption_of_a_training_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And looking ahead, all at once, changes no byte of the training."""
    visits: list[list[str]] = []
    really = TextAhead._encoded

    def listened(self: TextAhead, captions: list[str]) -> Any:
        visits.append(captions)
        return really(self, captions)

    monkeypatch.setattr(TextAhead, "_encoded", listened)
    written = []
    for ahead in (0, 99):
        monkeypatch.setattr(feed, "TextAhead", partial(TextAhead, ahead=ahead))
        folder = tmp_path / str(ahead)
        folder.mkdir()
        job, workspace = training(folder, recipe={"text_encoder_lr": 0.0, "gradient_accumulation_steps": 2})
        visits.clear()
        run(job, workspace, lambda *told: None)
        encoded = [caption for visit in visits for caption in visit]
        assert len(encoded) == len(set(encoded)) > 5
        assert (len(visits) == 1) == bool(ahead)
        written.append(outputs(folder))
    assert written[0] == written[1]


def test_an_adapter_that_is_drawn_anew_on_a_frozen_encoder_is_not_remembered():
    base, shape = tiny_base(), Shape(2, 1.0, 2, 1.0, options={"dropout": 0.1})
    with adapted(base, shape, 1, ["te1", "unet"]) as adapter:
        assert not adapter.leaves_text, "it is trained"
        frozen = replace(adapter, parts=("unet",))
        assert not frozen.leaves_text, "its dropout is drawn for each micro-batch"
        for module in frozen.modules.values():
            module.options = {}
        assert frozen.leaves_text
