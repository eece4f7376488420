"""[recipe.network_args] and what else says how the adapter is: settings that mean the same are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from manifest_world import Files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def recipe(files: Files, text: str) -> dict[str, Any]:
    return files.settings("[recipe]\n" + text)["recipe"]


NUMBERS = "0,0,4,8,8,8,8,8,16,8,8,8,8,8,8,8,8,8,8,8,8,8,9"  # of emb, INP00..08, MID00..02, OUT00..08, out


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("network_args.block_dims = { INP01 = 4, INP07 = 16 }", f'network_args.block_dims = "{NUMBERS}"'),
        (f'network_args.block_dims = "{NUMBERS}"', f"network_args.block_dims = [{NUMBERS}]"),
        ("network_args.block_dims = { INP01 = 8 }", ""),
        ('network_args.block_dims = { OUT01 = 2, "OUT*" = 4 }', 'network_args.block_dims = { "OUT*" = 4, OUT01 = 2 }'),
        ("network_args.block_dims = { TE = 0, TE1 = 4 }", "network_args.block_dims = { TE1 = 4, TE2 = 0 }"),
        ('network_args.block_alphas = { "*" = 1 }', ""),
        ("network_dropout = 0.25", "network_args.dropout = 0.25"),
        ("network_train_unet_only = true", "text_encoder_lr = 0"),
        ("network_train_text_encoder_only = true", "unet_lr = 0"),
        ("text_encoder_lr = [2e-4, 2e-4]", "text_encoder_lr = 2e-4"),
        ('network_args.algo = "lora"', ""),
        ("network_args.dora_wd = true\nnetwork_args.wd_on_output = true", "network_args.dora_wd = true"),
        ('network_args = ["conv_dim=4", "use_tucker=True"]', "network_args = { conv_dim = 4, use_tucker = true }"),
        ('network_args = ["algo=loha"]', 'network_args.algo = "loha"'),
        (f'network_args = ["block_dims={NUMBERS}"]', f'network_args.block_dims = "{NUMBERS}"'),
        ('network_args.preset = "unet-only"', 'network_args.preset = "unet-only"\ntext_encoder_lr = 0'),
    ],
)
def test_two_ways_to_say_one_thing_are_one(files: Files, one: str, other: str):
    assert recipe(files, one) == recipe(files, other)


def test_convolutions_follow_their_block_unless_they_have_ranks_of_their_own(files: Files):
    args = recipe(files, "network_args.block_dims = { OUT00 = 0, OUT01 = 4 }")["network_args"]
    assert args["conv_block_dims"] == args["block_dims"] == {"OUT00": 0, "OUT01": 4}
    args = recipe(files, "network_args = { conv_dim = 32, block_dims = { OUT00 = 0, OUT01 = 4 } }")["network_args"]
    assert args["conv_block_dims"] == {"OUT00": 0}, "a block of 0 is not trained at all"
    dims = "block_dims = { OUT00 = 0 }, conv_block_dims = { OUT00 = 2 }"
    assert recipe(files, f"network_args = {{ {dims} }}")["network_args"]["conv_block_dims"] == {"OUT00": 2}


def test_what_is_not_set_is_in_no_key(files: Files):
    """Trainings from before these keys were there stay fresh."""
    found = recipe(files, "")
    assert found["network_args"] == {"algo": "locon", "preset": "full", "conv_dim": 8, "conv_alpha": 1.0}
    new = ("scale_weight_norms", "network_dropout", "network_train_unet_only", "network_train_text_encoder_only")
    assert not any(key in found for key in new)
