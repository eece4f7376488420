"""What tables say of a usual recipe, without torch, is what comes out when the adapter is made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sdxl_base import SDXL
from sgm_base import write_sgm
from test_dry import GUIDE
from tiny_base import tiny_folder

from lorabuild.bases.shapes import clip_shapes, unet_shapes
from lorabuild.checks.reckoned import is_usual, reckoned
from lorabuild.lora.sdxl_names import unet_layers
from lorabuild.nn.dry import dry
from lorabuild.nn.networks import architecture

RECIPE = {**GUIDE, "optimizer_type": "AdamW", "lr_scheduler": "cosine", "max_train_steps": 10}
ARGS = GUIDE["network_args"]
BLOCKS = {"INP07": 16, "OUT00": 0, "TE2": 2}


def with_args(**changes: Any) -> dict[str, Any]:
    return {**RECIPE, "network_args": {**ARGS, **changes}}


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        with_args(preset="attn-mlp"),
        with_args(preset="unet-convblock-only", conv_dim=None) | {"network_dim": 3},
        with_args(block_dims=BLOCKS, conv_block_dims={"MID00": 5}),
        {**RECIPE, "text_encoder_lr": [0.0, 1e-4], "save_precision": "fp32"},
    ],
)
def test_the_numbers_are_those_of_the_adapter_that_is_made(recipe: dict[str, Any]):
    found = reckoned(recipe, None)
    assert found is not None and found["adapter"] == asdict(dry(recipe, None)) and found["faults"] == []


def test_a_folder_and_a_single_file_are_read_by_their_headers(tmp_path: Path):
    for base in (tiny_folder(), write_sgm(tmp_path / "tiny.safetensors")):
        found = reckoned(RECIPE, base)
        assert found is not None and found["adapter"] == asdict(dry(RECIPE, base))


def test_the_shapes_are_those_of_sdxl():
    config = SDXL["unet"]
    told = unet_shapes(config, [one.diffusers for one in unet_layers()])
    made = architecture("unet", config, "sdxl").state_dict()
    assert told == {name: tuple(tensor.shape) for name, tensor in made.items()}
    clip = SDXL["te2"] | {"vocab_size": 9, "max_position_embeddings": 7}
    made = architecture("te2", clip, "sdxl").state_dict()
    shapes = {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in made.items()}
    assert clip_shapes("te2", clip) == shapes


@pytest.mark.parametrize(
    "change",
    [
        {"layers_per_block": 3},
        {"transformer_layers_per_block": [1, 2, 4]},
        {"use_linear_projection": False},
        {"block_out_channels": [30, 64, 96]},
        {"something_new": 2},
    ],
)
def test_of_another_structure_nothing_is_said(change: dict[str, Any]):
    config = dict(SDXL["unet"])
    assert unet_shapes({**config, **change}, []) is None
    del config["transformer_layers_per_block"]
    assert unet_shapes(config, []) is None


@pytest.mark.parametrize(
    "recipe",
    [
        with_args(algo="loha"),
        with_args(train_norm=True),
        with_args(dora_wd=True),
        with_args(use_tucker=True),
        {**RECIPE, "optimizer_type": "Prodigy"},
        {**RECIPE, "optimizer_type": "my.own.Optimizer"},
        {**RECIPE, "lr_scheduler_type": "my.own.Schedule"},
        {**RECIPE, "phases": [{"max_train_steps": 5}]},
    ],
)
def test_what_tables_do_not_know_is_tried(recipe: dict[str, Any]):
    assert is_usual(RECIPE) and not is_usual(recipe) and reckoned(recipe, None) is None
