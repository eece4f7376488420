"""Captions: read strictly, drawn as sd-scripts draws them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from lorabuild.captions import draw_caption, read_caption
from lorabuild.errors import JobError

ROWS = json.loads((Path(__file__).parent / "goldens/captions.json").read_text())["rows"]
SETTINGS = {"shuffle_caption": False, "keep_tokens": 0, "caption_separator": ","}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['options']}-{row['caption'][:12]!r}")
def test_draws_are_those_of_sd_scripts(row: dict):
    random = Random(row["python_seed"])
    drawn = [draw_caption(row["caption"], SETTINGS | row["options"], random) for _ in range(3)]
    assert drawn == row["three_draws"]


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
