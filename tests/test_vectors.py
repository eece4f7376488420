"""Block vectors: every notation that other tools use gives the blocks that it means there, or is refused with a reason."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lorabuild.names import BLOCKS, TEXT_ENCODERS, UNET_BLOCKS, kept_blocks
from lorabuild.vectors import (
    ATTENTION_BLOCKS,
    LAYOUTS,
    PRESETS,
    SECTION_BLOCKS,
    VECTOR_STYLES,
    vector_strings,
    vector_weights,
)

INP, MID, OUT = SECTION_BLOCKS.values()
ORDER = {  # after the first number: the blocks of each
    12: "INP04 INP05 INP07 INP08 MID01 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
    20: " ".join([*INP, "MID00+MID01+MID02", *OUT]),
    21: " ".join(["INP00+INP01", *INP[2:], *MID, *OUT]),
    22: " ".join([*INP, *MID, *OUT]),
}
# Lines of ComfyUI-Inspire-Pack's lbw-preset.txt.
PRESET_LINES = [
    "SDXL-NONE:0,0,0,0,0,0,0,0,0,0,0,0",
    "SDXL-ALL:1,1,1,1,1,1,1,1,1,1,1,1",
    "SDXL-INALL:1,1,1,1,1,0,0,0,0,0,0,0",
    "SDXL-MIDALL:1,0,0,0,0,1,0,0,0,0,0,0",
    "SDXL-OUTALL:1,0,0,0,0,0,1,1,1,1,1,1",
    "SDXL-LyC-NONE:0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "SDXL-LyC-ALL:1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "SDXL-LyC-INALL:1,1,1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0",
    "SDXL-LyC-MIDALL:1,0,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0",
    "SDXL-LyC-OUTALL:1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
]
ATTENTION_FILE = [*ATTENTION_BLOCKS, *TEXT_ENCODERS]


def counting(count: int, first: float = 1) -> str:
    """`first`, 2, 3, …: each number is its own place."""
    return ",".join(f"{place:g}" for place in [first, *range(2, count + 1)])


def weights_of(count: int, unet: float = 1) -> dict[str, float]:
    """What `counting` gives the blocks of the U-Net."""
    groups = enumerate(ORDER[count].split(), 2)
    return {block: unet * place for place, group in groups for block in group.split("+")}


@pytest.mark.parametrize("count", ORDER)
@pytest.mark.parametrize("style", [None, *VECTOR_STYLES])
def test_the_count_says_what_the_numbers_stand_for(count: int, style: str | None):
    assert vector_weights(counting(count), style) == weights_of(count) | {"TE1": 1, "TE2": 1}


@pytest.mark.parametrize("count", ORDER)
def test_the_style_says_what_the_first_number_is(count: int):
    text = counting(count, -0.5)
    assert vector_weights(text, "inspire") == weights_of(count) | {"TE1": -0.5, "TE2": -0.5}
    assert vector_weights(text, "resize_lora") == weights_of(count, -0.5) | {"TE1": 1, "TE2": 1}
    with pytest.raises(ValueError, match="resize_lora multiplies the U-Net by it, Inspire-Pack the text encoders"):
        vector_weights(text)


def test_twelve_numbers_leave_other_blocks_unsaid():
    said = vector_weights(counting(12))
    assert [block for block in BLOCKS if block not in said] == [
        *("INP00", "INP01", "INP02", "INP03", "INP06", "MID00", "MID02", "OUT06", "OUT07", "OUT08")
    ]


def test_resize_loras_numbers_are_those_of_the_blocks_that_a_file_has():
    present = ["TE1", "OUT08", "INP04", "OUT00"]
    weights = vector_weights("0.5,2,4,6", "resize_lora", present)
    assert weights == {"INP04": 1, "OUT00": 2, "OUT08": 3, "TE1": 1, "TE2": 1}
    others = UNET_BLOCKS[:-1]  # 20 blocks, but not the 20 of a LyCORIS file
    assert [vector_weights(counting(21), "resize_lora", others)[block] for block in others] == [*range(2, 22)]
    assert vector_weights(counting(21), "inspire", others) == vector_weights(counting(21))
    assert vector_weights(counting(12), "resize_lora", present) == vector_weights(counting(12))
    for style in (None, "inspire"):
        with pytest.raises(ValueError, match=r"got 4$"):
            vector_weights("1,2,4,6", style, present)


def test_presets_are_inspire_packs_lines():
    assert [f"{name}:" + ",".join(f"{n:g}" for n in numbers) for name, numbers in PRESETS.items()] == PRESET_LINES


@pytest.mark.parametrize("line", PRESET_LINES)
def test_a_preset_by_name_and_as_a_pasted_line_is_its_numbers_in_inspire_style(line: str):
    name, numbers = line.split(":")
    weights = vector_weights(numbers, "inspire")
    for style in (None, "inspire"):
        assert vector_weights(f" {name} ", style) == vector_weights(line, style) == weights
    assert vector_weights(f"MY OWN:{numbers}:what follows is not read") == weights


@pytest.mark.parametrize("text", ["SDXL-NONE", "SDXL-LyC-NONE", "X:0.5" + ",1" * 20, "%default=1,base=0", "%default=0"])
def test_inspire_packs_notation_and_resize_loras_style_contradict_unless_the_first_is_one(text: str):
    with pytest.raises(ValueError, match=r"text encoders' weight: .*contradicts"):
        vector_weights(text, "resize_lora")


def test_resize_loras_style_contradicts_no_notation_that_starts_with_one():
    for text in ("SDXL-OUTALL", "X:" + counting(21), "%default=0,base=1"):
        assert vector_weights(text, "resize_lora") == vector_weights(text)


@pytest.mark.parametrize(
    ("text", "present", "weights"),
    [
        ("%default=0.5", None, dict.fromkeys(BLOCKS, 0.5)),
        ("% default = 0 , base = 1 ", None, dict.fromkeys(BLOCKS, 0) | {"TE1": 1, "TE2": 1}),
        ("%base=1,out=2,default=-1", None, dict.fromkeys(BLOCKS, -1) | dict.fromkeys(OUT, 2) | {"TE1": 1, "TE2": 1}),
        ("%in=1,mid=2,out=3,base=4", None, {b: "IMOT".index(b[0]) + 1 for b in BLOCKS}),
        ("%default=1,out=2,out=3", None, dict.fromkeys(BLOCKS, 1) | dict.fromkeys(OUT, 3)),
        ("%default=1,in1=0", ATTENTION_FILE, dict.fromkeys(BLOCKS, 1) | {"INP04": 0}),
        ("%default=1,in1=0", ["INP00", "INP04"], dict.fromkeys(BLOCKS, 1) | {"INP00": 0}),
        ("%default=1,in4=.5,mid1=0", ATTENTION_FILE, dict.fromkeys(BLOCKS, 1) | {"INP08": 0.5, "MID01": 0}),
        ("%default=0,out2-4=1", UNET_BLOCKS, dict.fromkeys(BLOCKS, 0) | dict.fromkeys(OUT[1:4], 1)),
        ("%default=0,out2-4=1,out3=5", OUT[::-1], dict.fromkeys(BLOCKS, 0) | {"OUT01": 1, "OUT02": 5, "OUT03": 1}),
        ("%default=0,out3=5,out=1", OUT, dict.fromkeys(BLOCKS, 0) | dict.fromkeys(OUT, 1)),
        ("%out1=1,base=1", ["OUT05", "TE1"], {"OUT05": 1, "TE1": 1, "TE2": 1}),
        ("%out1=1", ["OUT05"], {"OUT05": 1}),
    ],
)
def test_the_notation_with_percent_means_what_it_does_in_inspire_pack(text: str, present, weights: dict[str, float]):
    assert vector_weights(text, present=present) == weights


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'number 1 is "": a number like 0, 1 or 0.5'),
        ("1,1", "12, 20, 21 or 22 numbers are expected, got 2"),
        *((",".join("1" * count), f"got {count}") for count in (1, 11, 13, 17, 19, 23, 26)),
        ("1,nan", 'number 2 is "nan"'),
        ("1,1,1e999", "number 3 is inf: a finite number"),
        ("1,1,-1e999", "number 3 is -inf: a finite number"),
        ("1,1,١", "number 3 is"),
        ("1,1,a\nb", "number 3 is"),
        *((f"1,1,{letter}", f'number 3 is "{letter}": ') for letter in "RrUuAaBbx"),
        *((f"1,{letter}", "random in Inspire-Pack, and equal inputs must give equal files") for letter in "RrUu"),
        *((f"1,{letter}", "parameters of Inspire-Pack's node: write the number") for letter in "AaBb"),
        ("R", 'number 1 is "R"'),
        ("1,1, 0.5 1 ,1", 'number 3 is "0.5 1": values for single layers inside a block are not supported'),
        ("1,R R", "values for single layers inside a block are not supported"),
        ("SDXL-OUTAL", 'did you mean "SDXL-OUTALL"?'),
        ("sdxl-lyc-none", 'did you mean "SDXL-LyC-NONE"?'),
        ("@SDXL-FULL-TEST", "not a preset"),
        ("mine", "not a preset of Inspire-Pack for SDXL; write its numbers"),
        *((name, "a preset for another model family") for name in ("SD-ALL", "SD-LyC-INALL", "FLUX-ALL")),
        ("SDXL-ALL:", 'number 1 is ""'),
        ("SDXL-ALL:1,0", "got 2"),
        ("%", 'item 1 is ""'),
        ("%default=1,", 'item 2 is ""'),
        ("%default=1,inn=2", 'item 2 is "inn=2"'),
        ("%default4=1", "item 1 is"),
        ("%default=1,in=R", 'the number of item 2 is "R"'),
        ("%default=1,in=1e999", "the number of item 2 is inf"),
        *((f"%default=1,{name}3=0", f"{name} blocks are Flux's") for name in ("double", "single")),
        ("%out=0", "nothing is said of INP00, INP01,"),
        ("%in=1,mid=2,out=3", "nothing is said of TE1, TE2: add default=1"),
        ("%default=1,in4=0", 'item 2 is "in4=0": the 4 counts the blocks that a file happens to have'),
        ("%default=1,out1-2=0", "name the block by keep or weights (such as INP04), or give 21 numbers"),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_its_place_and_reason(text: str, words: str):
    with pytest.raises(ValueError) as caught:
        vector_weights(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "style", "words"),
    [
        (
            "1,1,1",
            "resize_lora",
            "12, 20, 21 or 22 numbers are expected, got 3 (for this file also 12: its U-Net blocks",
        ),
        ("1e300,1e300" + ",1" * 10, "resize_lora", "number 2, multiplied by the first, is inf"),
        ("%default=1,in5=0", None, 'item 2 is "in5=0": the file has 4 INP blocks'),
        ("%default=1,in4-5=0", None, "the file has 4 INP blocks"),
        ("%default=1,in0=0", None, "counted upwards from 1"),
        ("%default=1,in3-2=0", None, "counted upwards from 1"),
        ("%in1-3=1,mid=1,out=1,base=1", None, "nothing is said of INP08: add default=1"),
    ],
)
def test_what_a_file_cannot_mean_is_one_line(text: str, style: str | None, words: str):
    with pytest.raises(ValueError) as caught:
        vector_weights(text, style, ATTENTION_FILE)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@given(some.sampled_from(sorted(ORDER)), some.data())
def test_a_vector_is_the_weights_of_its_blocks(count: int, data):
    numbers = data.draw(some.lists(some.floats(-10, 10), min_size=count - 1, max_size=count - 1))
    weights = vector_weights(",".join(map(str, [1, *numbers])))
    assert [weights[group[-1]] for group in LAYOUTS[count]] == numbers
    assert str(weights).count("-0.0,") == 0  # -0 is 0


@given(some.text("%=,-:1 inoutbaseAR\n") | some.text(max_size=9), some.sets(some.sampled_from(BLOCKS)))
def test_any_text_is_read_or_refused_in_one_line(text: str, present: set[str]):
    for there in (None, sorted(present)):
        try:
            assert set(vector_weights(text, "inspire", there)) <= set(BLOCKS)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)


def test_strings_to_write_for_a_file():
    assert vector_strings({"OUT01", "TE1", "TE2"}) == {
        "keep": "TE,OUT01",
        "inspire": "1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0",
        "lbw20": "1,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0",
        "lbw12": "1,0,0,0,0,0,0,1,0,0,0,0",
    }
    strings = vector_strings(["MID02", "TE2", "INP00"])
    assert strings["keep"] == "TE2,INP00,MID02"
    assert strings["inspire"] == "1,1,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0"
    assert strings["lbw20"] == "1,1,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0"
    assert vector_strings([])["keep"] == ""


def nothing_is_lost(blocks: set[str]) -> None:
    strings = vector_strings(blocks)
    assert kept_blocks(strings.pop("keep").split(",")) == blocks
    for notation, text in strings.items():
        weights = vector_weights(text)
        assert {block for block in blocks if not weights.get(block, 1)} == set(), notation


def test_no_string_loses_any_one_or_two_blocks_or_all_but_these():
    for few in [*combinations(BLOCKS, 1), *combinations(BLOCKS, 2)]:
        nothing_is_lost(set(few))
        nothing_is_lost(set(BLOCKS) - set(few))


@given(some.sets(some.sampled_from(BLOCKS), min_size=1))
def test_no_string_loses_a_block_of_any_file(blocks: set[str]):
    nothing_is_lost(blocks)
