"""Names of projects and blocks: which tensor is in which block, and what a [chop] table makes of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lorabuild.names import (
    BLOCKS,
    RESERVED,
    STAGES,
    UNET_BLOCKS,
    block_of,
    kept_blocks,
    name_problem,
    named_blocks,
    resolve_chop,
)
from lorabuild.vectors import ATTENTION_BLOCKS, VECTOR_BLOCKS

ALL = dict.fromkeys(BLOCKS, 1.0)
NONE = dict.fromkeys(BLOCKS, 0.0)


def kept(*names: str) -> dict[str, float]:
    return NONE | dict.fromkeys(names, 1.0)


def vector(first: float = 1, **blocks: float) -> str:
    """21 numbers: those named, and 0."""
    return ",".join(f"{number:g}" for number in [first, *(blocks.get(block, 0) for block in VECTOR_BLOCKS)])


def test_blocks_are_those_of_sdxl_in_order():
    in_order = (
        *("INP00", "INP01", "INP02", "INP03", "INP04", "INP05", "INP06", "INP07", "INP08", "MID00", "MID01", "MID02"),
        *("OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08", "TE1", "TE2"),
    )
    assert in_order == BLOCKS
    assert len(VECTOR_BLOCKS) == 20


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight", "INP04"),
        ("lora_unet_input_blocks_0_0.alpha", "INP00"),
        ("lora_unet_input_blocks_3_0_op", "INP03"),
        ("lora_unet_middle_block_1_proj_in.lora_up.weight", "MID01"),
        ("lora_unet_output_blocks_8_0_in_layers_2.alpha", "OUT08"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "TE1"),
        ("lora_te2_text_model_encoder_layers_31_self_attn_q_proj.lora_up.weight", "TE2"),
        ("lora_unet_input_blocks_9_0_op", None),
        ("lora_unet_input_blocks_12_0_op", None),
        ("lora_unet_middle_block_3_x", None),
        ("lora_unet_time_embed_0.alpha", None),
        ("lora_unet_label_emb_0_0.alpha", None),
        ("lora_unet_out_2.alpha", None),
        ("lora_unet_down_blocks_1_attentions_0_proj_in.alpha", None),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", None),
        ("input_blocks_4_1_proj_in.alpha", None),
        ("", None),
    ],
)
def test_a_tensor_is_in_the_block_that_its_name_says(key: str, block: str | None):
    assert block_of(key) == block


@pytest.mark.parametrize(
    ("chop", "weights"),
    [
        ({}, ALL),
        ({"keep": ["TE", "OUT01"]}, kept("TE1", "TE2", "OUT01")),
        ({"keep": ["TE2"]}, kept("TE2")),
        ({"keep": []}, NONE),
        ({"keep": ["IN*"]}, kept(*(block for block in BLOCKS if block.startswith("INP")))),
        ({"keep": ["T*"]}, kept("TE1", "TE2")),
        ({"keep": ["OUT0[0-2]"]}, kept("OUT00", "OUT01", "OUT02")),
        ({"keep": ["*"]}, ALL),
        ({"keep": ["!OUT08"]}, ALL | {"OUT08": 0.0}),
        ({"keep": ["!TE", "!IN*", "!OUT*"]}, kept("MID00", "MID01", "MID02")),
        ({"keep": ["MID*", "!MID01"]}, kept("MID00", "MID02")),
        ({"keep": ["!MID*", "MID01"]}, ALL | {"MID00": 0.0, "MID02": 0.0}),
        ({"keep": ["MID01", "!MID*"]}, NONE),
        ({"keep": ["TE", "!TE1"]}, kept("TE2")),
        ({"weights": {"OUT01": 0.5}}, ALL | {"OUT01": 0.5}),
        ({"weights": {"TE": 0.5}}, ALL | {"TE1": 0.5, "TE2": 0.5}),
        ({"weights": {"TE1": 0.25, "TE": 0.5}}, ALL | {"TE1": 0.25, "TE2": 0.5}),
        ({"weights": {"TE": 0.5, "TE1": 0.25}}, ALL | {"TE1": 0.25, "TE2": 0.5}),
        ({"keep": ["OUT01", "TE"], "weights": {"OUT01": 0.5, "OUT02": 0.5}}, kept("TE1", "TE2") | {"OUT01": 0.5}),
        ({"vector": vector(OUT01=1)}, kept("OUT01", "TE1", "TE2")),
        ({"vector": vector(INP01=0.5)}, kept("TE1", "TE2") | {"INP00": 0.5, "INP01": 0.5}),
        ({"vector": vector(0.5, OUT01=0.5), "vector_style": "resize_lora"}, kept("TE1", "TE2") | {"OUT01": 0.25}),
        ({"vector": vector(0.5, OUT01=0.5), "vector_style": "inspire"}, NONE | {"TE1": 0.5, "TE2": 0.5, "OUT01": 0.5}),
        ({"vector": vector(0, OUT01=1), "vector_style": "inspire"}, kept("OUT01")),
        ({"vector": " 1 , " + ", ".join(["1"] * 20)}, ALL),
        ({"vector": ",".join(["1.0", *["1e0"] * 10, *["+1"] * 10])}, ALL),
        ({"vector": vector(OUT01=1), "weights": {"OUT01": 2}}, kept("TE1", "TE2") | {"OUT01": 2.0}),
        (
            {"vector": vector(OUT01=-1), "weights": {"OUT01": -0.5, "TE": -2}},
            NONE | {"OUT01": 0.5, "TE1": -2, "TE2": -2},
        ),
        ({"weights": {"OUT01": -1}}, ALL | {"OUT01": -1.0}),
        ({"vector": "1" + ",0" * 11}, ALL | dict.fromkeys(ATTENTION_BLOCKS, 0.0)),
    ],
)
def test_a_chop_gives_every_block_a_weight(chop: dict, weights: dict[str, float]):
    assert resolve_chop(chop) == weights
    assert list(resolve_chop(chop)) == list(BLOCKS)
    assert all(type(weight) is float for weight in resolve_chop(chop).values())


def test_the_same_blocks_in_other_words_are_equal():
    same = [
        {"keep": ["TE", "OUT01"]},
        {"keep": ["OUT01", "TE2", "TE1"]},
        {"keep": ["OUT01", "OUT01", "T*"]},
        {"keep": ["OUT0*", "TE", "!OUT00", "!OUT0[2-8]"]},
        {"vector": vector(OUT01=1)},
        {"vector": vector(1, OUT01=1), "vector_style": "inspire"},
        {"vector": vector(1, OUT01=-0.0).replace("-0", "1"), "vector_style": "resize_lora"},
    ]
    assert all(str(resolve_chop(chop)) == str(resolve_chop(same[0])) for chop in same)


def test_minus_zero_is_zero():
    assert str(resolve_chop({"vector": vector().replace("0", "-0")})) == str(resolve_chop({"keep": ["TE"]}))


@pytest.mark.parametrize(
    ("chop", "words"),
    [
        ({"keep": ["OUT1"]}, 'did you mean "OUT01"?'),
        ({"keep": ["out01"]}, 'did you mean "OUT01"?'),
        ({"keep": ["IN04"]}, 'did you mean "INP04"?'),
        ({"keep": ["!OUT09"]}, "no such block"),
        ({"keep": ["!!OUT01"]}, "no such block"),
        ({"keep": [""]}, "no such block"),
        ({"keep": ["IN?"]}, "matches no block"),
        ({"weights": {"OUT*": 1}}, "no such block"),
        ({"weights": {"OUT01": float("nan")}}, "a finite number is expected"),
        ({"weights": {"TE": float("-inf")}}, "a finite number is expected"),
        ({"vector": vector(OUT01=1e300), "weights": {"OUT01": 1e300}}, "a finite number is expected"),
        ({"vector": vector(0.5)}, "resize_lora multiplies the U-Net"),
        ({"vector": "%default=1,in4=0"}, "there is no file yet"),
        ({"keep": ["TE"], "vector": vector()}, '"keep" and "vector"'),
    ],
)
def test_a_chop_that_means_nothing_is_one_line(chop: dict, words: str):
    with pytest.raises(ValueError) as caught:
        resolve_chop(chop)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_at_hand_gives_ordinals_a_meaning():
    chop = {"vector": "%default=1,in1=0"}
    assert resolve_chop(chop, present=["INP04", "INP05"]) == ALL | {"INP04": 0.0}


def test_blocks_named_one_by_one_are_told_apart_from_globs():
    assert named_blocks({"keep": ["OUT01", "INP00", "MID*", "TE"]}) == ["INP00", "OUT01", "TE1", "TE2"]
    assert named_blocks({"keep": ["*", "!OUT01"], "weights": {"INP00": 0.5, "OUT02": 0, "OUT01": 1}}) == ["INP00"]
    assert named_blocks({"keep": ["OUT01", "!OUT01"]}) == []
    assert named_blocks({"vector": vector(OUT01=1)}) == []
    assert named_blocks({}) == []


@given(some.lists(some.sampled_from([*BLOCKS, "TE", "IN*", "MID*", "*"])), some.randoms())
def test_without_negations_the_order_does_not_count(keep: list[str], random):
    shuffled = random.sample(keep, len(keep))
    assert kept_blocks(keep) == kept_blocks(shuffled)


@given(some.text(max_size=8))
def test_any_text_as_a_pattern_matches_or_is_refused_in_one_line(text: str):
    try:
        assert kept_blocks([text]) <= set(BLOCKS)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["ember", "a", "0", "my-fox_2", "9lives"])
def test_good_names(name: str):
    assert name_problem(name) is None


@pytest.mark.parametrize("name", ["", "Ember", "-x", "_x", "my fox", "a/b", "..", "füchs", "ember\n", "a:b", "a@b"])
def test_bad_names(name: str):
    assert name_problem(name)


def test_every_stage_and_command_is_reserved():
    assert set(STAGES) < set(RESERVED)
    assert {"samples", "report", "list", "run", "why", "blocks", "reset-dep", "build"} < set(RESERVED)
    assert len(RESERVED) == len(set(RESERVED))


def test_the_unet_has_21_blocks():
    assert len(UNET_BLOCKS) == 21 and UNET_BLOCKS[1:] == VECTOR_BLOCKS
