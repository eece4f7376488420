"""Prompt files: sd-scripts' where it is right; where it hides a mistake, the mistake is told at its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorabuild.data.prompts import parse_prompts, read_line, read_prompts
from lorabuild.errors import JobError

GOLDEN = json.loads((Path(__file__).parent / "goldens/sampling.json").read_text())["prompt_lines"]
# What sd-scripts makes of these hides a mistake: line -> what we make of it, or a word of what we say.
OTHERWISE = {
    "x --W 512 --H 513 --D 7": {"prompt": "x", "width": 512, "height": 512, "seed": 7},  # it rounds when it draws
    "a -- b --n neg, with -- dashes --w 64": {
        "prompt": "a -- b",
        "negative_prompt": "neg, with -- dashes",
        "width": 64,
    },
    "w 512 as first word": {"prompt": "w 512 as first word"},
    "bad --w abc --h 10": "--w abc: a whole number",
    "neg seed --d -5": "--d -5: a whole number, 0 or more",
    "no space--w 512": "--w: an option needs a space before it",
}


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["line"])
def test_a_line_is_what_sd_scripts_reads_or_a_fault(row: dict):
    values, faults, _ = read_line(row["line"])
    expected = OTHERWISE.get(row["line"], row["dict"])
    if isinstance(expected, str):
        assert len(faults) == 1 and faults[0].startswith(expected)
    else:
        assert (values, faults) == (expected, [])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a cat --st 30", '--st: no such option (did you mean "s"?); they are --n, --w'),
        ("a cat --ar 16:9", "--ar: no such option"),
        ("a cat --w=512", "--w: write a space in place of ="),
        ("a cat --w", "--w: a whole number"),
        ("a cat --w 512 px", "--w 512 px: a whole number"),
        ("a cat --w 99999", "--w 99999: at most 16384"),
        ("a cat --l high", "--l high: a number"),
        ("a cat --l -1", "--l -1: a number, 0 or more"),
        ("a cat --d 99999999999999999999", "--d 99999999999999999999: at most"),
        ("a cat --ss euler_b", '--ss euler_b: no such sampler (did you mean "euler'),
        ("a cat --n dog--w 512", "--w: an option needs a space"),
    ],
)
def test_a_mistake_is_a_fault(line: str, said: str):
    _, faults, _ = read_line(line)
    assert len(faults) == 1 and faults[0].startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a cat --g 3.5", "--g means nothing to SDXL"),
        ("a cat --cn face.png", "--cn means nothing to SDXL"),
        ("a cat --n a --n b", "--n is given twice: the last one counts"),
        ("a cat --h 10", "--h 10: drawn with 64 pixels"),
        ("a cat --s 2000", "--s 2000: 1000 steps"),
    ],
)
def test_what_is_worth_a_word_is_a_warning(line: str, said: str):
    _, faults, notes = read_line(line)
    assert not faults and len(notes) == 1
    assert notes[0].startswith(said)


def test_a_file_of_lines():
    data = "\ufeff# a comment\r\n\r\n  # another\r\na fox --s 5\r\n--w 512\r\nden, Straße\r\n".encode()
    found = parse_prompts(data, "p.txt").prompts
    assert [(one.line, one.prompt, one.width, one.sample_steps) for one in found] == [
        (4, "a fox", None, 5),
        (5, "", 512, 30),
        (6, "den, Straße", None, 30),
    ]


def test_a_file_of_toml():
    data = b"""
[prompt]
width = 768
negative_prompt = "blurry"
[[prompt.subset]]
prompt = "a fox"
[[prompt.subset]]
prompt = "a -- cat"
width = 512
scale = 6
"""
    one, two = parse_prompts(data, "p.toml").prompts
    assert (one.line, one.prompt, one.width, one.negative_prompt) == (5, "a fox", 768, "blurry")
    assert (two.line, two.prompt, two.width, two.scale) == (7, "a -- cat", 512, 6.0)


def test_a_file_of_json():
    data = b'[\n "a fox --w 512",\n\n {"prompt": "b",\n  "seed": 3, "enum": 1}\n]'
    one, two = parse_prompts(data, "p.json").prompts
    assert (one.line, one.prompt, one.width) == (2, "a fox", 512)
    assert (two.line, two.prompt, two.seed) == (4, "b", 3)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("p.txt", b"a\nb --w x\nc --zz 1", ["p.txt:2: --w x: a whole", "p.txt:3: --zz: no such option"]),
        ("p.txt", b"# nothing\n\n", ["p.txt: holds no prompt"]),
        ("p.txt", b"a\n\xff\xfe", ["p.txt:2: not UTF-8"]),
        ("p.toml", b"[prompt]\nwidth = = 3", ["p.toml:2: not TOML"]),
        ("p.toml", b'prompt = "a"', ["p.toml:1: expected [prompt] and"]),
        ("p.toml", b"[prompt]\n[[prompt.subset]]\nprmpt = 'a'", ['p.toml:2: prmpt: no such key (did you mean "prompt"?)', "p.toml:2: has no"]),
        ("p.toml", b"[[prompt.subset]]\nprompt = 'a'\nwidth = true", ["p.toml:1: width True: a whole number"]),
        ("p.json", b'[\n"a"\n"b"]', ["p.json:3: not JSON"]),
        ("p.json", b'{"prompt": "a"}', ["p.json:1: a list of prompts"]),
        ("p.json", b'["a",\n 3]', ["p.json:2: a table is expected"]),
    ],
)  # fmt: skip
def test_all_mistakes_of_a_file_are_told_at_their_lines(name: str, data: bytes, said: list[str]):
    with pytest.raises(JobError) as caught:
        parse_prompts(data, name)
    lines = [str(problem) for problem in caught.value.problems]
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True)), lines


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(JobError, match=r"^prompts.txt: no such file$"):
        read_prompts(tmp_path / "prompts.txt", "prompts.txt")
