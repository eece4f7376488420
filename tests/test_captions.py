"""Captions: read strictly, drawn as sd-scripts draws them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from lorabuild.data.captions import draw_caption, read_caption
from lorabuild.errors import JobError

ROWS = json.loads((Path(__file__).parent / "goldens/captions.json").read_text())["rows"]
SETTINGS = {"shuffle_caption": False, "keep_tokens": 0, "caption_separator": ","}


@pytest.mark.parametrize(("options", "caption", "drawn"), ROWS)
def test_draws_are_those_of_sd_scripts(options: dict, caption: str, drawn: list[str]):
    random = Random(123)
    assert [draw_caption(caption, SETTINGS | options, random, epoch=0, update=0) for _ in range(3)] == drawn


def test_every_so_many_epochs_have_no_captions():
    settings = SETTINGS | {"caption_dropout_every_n_epochs": 3}
    drawn = [draw_caption("a, b", settings, Random(1), epoch) for epoch in range(7)]
    assert drawn == ["a, b", "a, b", "", "a, b", "a, b", "", "a, b"]


def test_a_part_of_the_captions_and_of_the_tags_is_dropped():
    def share(settings: dict) -> float:
        random = Random(5)
        return sum(bool(draw_caption("a", SETTINGS | settings, random)) for _ in range(2000)) / 2000

    assert share({"caption_dropout_rate": 0.3}) == pytest.approx(0.7, abs=0.03)
    assert share({"caption_tag_dropout_rate": 0.2}) == pytest.approx(0.8, abs=0.03)
    assert share({"caption_tag_dropout_rate": 1.0, "keep_tokens": 1}) == 1


@pytest.mark.parametrize(("warmup", "updates"), [(8, 100), (0.08, 100)])
def test_captions_grow_to_all_their_tags(warmup: float, updates: int):
    settings = SETTINGS | {"token_warmup_step": warmup, "token_warmup_min": 2, "keep_tokens": 1}
    tags = [f"t{number}" for number in range(7)]
    lengths = [
        len(draw_caption(", ".join(tags), settings, Random(1), 0, update, updates).split(", ")) for update in range(10)
    ]
    assert lengths == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7], "one fixed, then 2 of 6, half a tag more each update"


def test_a_line_and_a_part_of_each_bracket_are_drawn():
    settings = SETTINGS | {"enable_wildcard": True}
    random = Random(3)
    drawn = {draw_caption("{red|blue} hat\n{{x}} {a|b|}", settings, random) for _ in range(200)}
    assert drawn == {"red hat", "blue hat", "{x} a", "{x} b", "{x} "}


def test_all_lines_are_read_where_one_is_to_be_drawn():
    data = b"\xef\xbb\xbf one \r\n\r\n  two\n\n"
    assert read_caption(data, "1.txt", every_line=True) == "one\ntwo"
    assert read_caption(b" \n", "1.txt", every_line=True) == ""


def test_without_shuffling_no_random_number_is_used():
    random = Random(1)
    assert draw_caption("a,b", SETTINGS, random) == "a,b"
    assert random.random() == Random(1).random()


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"ember, red\n", "ember, red"),
        (b"\xef\xbb\xbfember, red", "ember, red"),
        (b" ember \r\nsecond line", "ember"),
        (b"old mac\rsecond line", "old mac"),
        (b"\nsecond line", ""),
        (b"", ""),
        ("ember, élan 🦊".encode(), "ember, élan 🦊"),
        ("one\u2028line".encode(), "one\u2028line"),
    ],
)
def test_the_first_line_is_the_caption(data: bytes, caption: str):
    assert read_caption(data, "1.txt") == caption


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("ember, café".encode("cp1252"), "byte 0xe9 at offset 10"),
        (b"\xef\xbb\xbfab\xff", "byte 0xff at offset 5"),
        ("ember".encode("utf-16"), "looks like UTF-16 at offset 0"),
        ("ember".encode("utf-16-le"), "zero byte at offset 1"),
    ],
)
def test_another_encoding_is_one_line_with_file_and_offset(data: bytes, words: str):
    with pytest.raises(JobError) as caught:
        read_caption(data, "images/1.txt")
    (problem,) = caught.value.problems
    assert str(problem).startswith("images/1.txt: not UTF-8") and words in str(problem)
