"""`lorabuild chop` on any LoRA file: half a block is half of what it adds, whatever the flavour and the names."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_lab import read
from lycoris.functional import locon, loha, lokr
from safetensors.torch import save_file
from torch import Tensor

from lorabuild.errors import UserError
from lorabuild.header import read_header
from lorabuild.lora.canonical import block_of_module
from lorabuild.lora.chopping import PIECE
from lorabuild.lora.layers import module_of
from lorabuild.names import BLOCKS, TEXT_ENCODERS, UNET_BLOCKS
from lorabuild.vectors import ATTENTION_BLOCKS, VECTOR_BLOCKS
from lorabuild.verbs.chop import main
from lorabuild.writing import header_bytes

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
NAMES = {
    "INP": "lora_unet_input_blocks_{}_0_x",
    "MID": "lora_unet_middle_block_{}_x",
    "OUT": "lora_unet_output_blocks_{}_1_x",
}
MODULE = {block: NAMES[block[:3]].format(int(block[3:])) for block in UNET_BLOCKS} | {
    te: f"lora_{te.lower()}_x" for te in TEXT_ENCODERS
}

PAIR = {"lora_up.weight": (8, 4), "lora_down.weight": (4, 6)}
HADA = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)}
HADA_TUCKER = {f"hada_w{n}_{side}": (2, wide) for n in "12" for side, wide in (("a", 8), ("b", 6))}
# Suffix -> shape; what adds to a weight [8, 6] or [8, 6, 3, 3]
FLAVOURS: dict[str, dict[str, tuple[int, ...]]] = {
    "linear": {**PAIR, "alpha": ()},
    "no alpha": PAIR,
    "1x1": {"lora_up.weight": (8, 4, 1, 1), "lora_down.weight": (4, 6, 1, 1), "alpha": ()},
    "3x3": {"lora_up.weight": (8, 4, 1, 1), "lora_down.weight": (4, 6, 3, 3), "alpha": ()},
    "tucker": {"lora_up.weight": (8, 4, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_down.weight": (4, 6, 1, 1), "alpha": ()},
    "with bias": {**PAIR, "alpha": (), "diff_b": (8,)},
    "PEFT": {"lora_B.weight": (8, 4), "lora_A.weight": (4, 6)},
    "diffusers": {"lora.up.weight": (8, 4), "lora.down.weight": (4, 6)},
    "LoHa": {**HADA, "alpha": ()},
    "LoHa 3x3": {**HADA, "hada_w1_b": (2, 54), "hada_w2_b": (2, 54), "alpha": ()},
    "LoHa tucker": {**HADA_TUCKER, "hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3), "alpha": ()},
    "LoKr": {"lokr_w1": (2, 3), "lokr_w2": (4, 2), "alpha": ()},
    "LoKr 3x3": {"lokr_w1": (2, 3), "lokr_w2": (4, 2, 3, 3), "alpha": ()},
    "LoKr w2": {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 2), "alpha": ()},
    "LoKr w2 3x3": {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 2, 3, 3), "alpha": ()},
    "LoKr w1": {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2": (4, 2), "alpha": ()},
    "LoKr both": {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 2), "alpha": ()},
    "LoKr tucker": {"lokr_w1": (2, 3), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 2), "alpha": ()},
    "full": {"diff": (8, 6), "diff_b": (8,)},
    "full 3x3": {"diff": (8, 6, 3, 3), "diff_b": (8,)},
    "norm": {"w_norm": (8,), "b_norm": (8,)},
    "norm without bias": {"w_norm": (8,)},
}  # fmt: skip


def module(name: str, flavour: str, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = FLAVOURS[flavour]
    return {
        f"{name}.{end}": torch.randn(shape, generator=random) if shape else torch.tensor(3.0)
        for end, shape in shapes.items()
    }


def write(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, metadata: dict | None = None
) -> Path:
    save_file({key: one.to(dtype).contiguous() for key, one in tensors.items()}, path, metadata)
    return path


def added(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """What module `name` adds to weight and bias, by LyCORIS itself, in float64."""
    of = {key.removeprefix(f"{name}."): one.double() for key, one in tensors.items() if module_of(key) == name}
    gamma = of.pop("alpha", torch.tensor(1.0, dtype=torch.float64))
    found = [of[role] for role in ("diff", "diff_b", "w_norm", "b_norm") if role in of]
    for up, down in (("lora_up", "lora_down"), ("lora_B", "lora_A"), ("lora.up", "lora.down")):
        if f"{up}.weight" in of:
            factors = (of[f"{down}.weight"], of[f"{up}.weight"], of.get("lora_mid.weight"))
            found.append(locon.diff_weight(*factors, gamma=gamma, backend="torch"))
    if "hada_w1_a" in of:
        factors = map(of.get, ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2"))
        found.append(loha.diff_weight(*factors, gamma=gamma, backend="torch"))
    if {"lokr_w1", "lokr_w1_a"} & of.keys():
        roles = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        found.append(lokr.diff_weight(*(of.get(f"lokr_{role}") for role in roles), gamma=gamma, backend="torch"))
    return found


def chop(*args: str | Path) -> None:
    assert main([str(arg) for arg in args]) == 0


def refused(*args: str | Path, code: int) -> str:
    """The one line that a user gets."""
    with pytest.raises(UserError) as caught:
        main([str(arg) for arg in args])
    assert caught.value.exit_code == code and "\n" not in str(caught.value)
    return str(caught.value)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_half_of_a_block_is_half_of_what_it_adds(tmp_path: Path, flavour: str, dtype: str):
    tensors = module(MODULE["OUT01"], flavour) | module(MODULE["INP04"], flavour, seed=1)
    path = write(tmp_path / "in.safetensors", tensors, DTYPES[dtype])
    chop(path, "--weights", "OUT01=0.5", "-o", tmp_path / "out.safetensors")
    before, after = read(path), read(tmp_path / "out.safetensors")
    assert {key: one.dtype for key, one in after.items()} == {key: one.dtype for key, one in before.items()}
    whole, half = added(before, MODULE["OUT01"]), added(after, MODULE["OUT01"])
    assert len(whole) == len(half) > 0
    for one, other in zip(whole, half, strict=True):
        torch.testing.assert_close(other, 0.5 * one, rtol=1e-12, atol=1e-6)  # halving rounds tiny numbers alone
    assert same(*({key: one for key, one in found.items() if "input" in key} for found in (before, after)))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_block_is_left_of_a_zero_and_nothing_changes_by_a_one(tmp_path: Path, flavour: str):
    tensors = module(MODULE["OUT01"], flavour) | module(MODULE["INP04"], flavour, seed=1)
    path = write(tmp_path / "in.safetensors", tensors, torch.bfloat16)
    chop(path, "--weights", "OUT01=0,INP04=1", "-o", tmp_path / "zero.safetensors")
    kept = {key: one for key, one in read(path).items() if module_of(key) == MODULE["INP04"]}
    assert same(read(tmp_path / "zero.safetensors"), kept)
    chop(path, "--keep", "INP04,OUT01", "-o", tmp_path / "one.safetensors")
    assert same(read(tmp_path / "one.safetensors"), read(path))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [0.3, -0.7, 1.5, -1.0])
def test_any_weight_is_rounded_once(tmp_path: Path, weight: float, dtype: str):
    path = write(tmp_path / "in.safetensors", module(MODULE["TE1"], "linear"), DTYPES[dtype])
    chop(path, "--weights", f"TE={weight}", "-o", tmp_path / "out.safetensors")
    before, after = read(path), read(tmp_path / "out.safetensors")
    up = f"{MODULE['TE1']}.lora_up.weight"
    rounding = torch.finfo(DTYPES[dtype]).eps
    torch.testing.assert_close(
        after[up].double(), before[up].double() * weight, rtol=rounding, atol=1e-7 * (dtype == "fp16")
    )
    assert same(
        {key: one for key, one in after.items() if key != up}, {key: one for key, one in before.items() if key != up}
    )


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "INP04"),
        ("lora_unet_mid_block_resnets_0_conv1", "MID00"),
        ("unet.up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "OUT01"),
        ("unet.up_blocks.2.resnets.2.time_emb_proj", "OUT08"),
        ("input_blocks_4_1_proj_in", "INP04"),
        ("output_blocks.1.1.proj_in", "OUT01"),
        ("diffusion_model.middle_block.1.proj_in", "MID01"),
        ("lycoris_down_blocks_2_attentions_1_proj_out", "INP08"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "TE1"),
        ("text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj", "TE2"),
    ],
)
@pytest.mark.parametrize("flavour", ["linear", "PEFT"])
def test_a_block_is_found_under_any_name(tmp_path: Path, name: str, block: str, flavour: str):
    path = write(tmp_path / "in.safetensors", module(name, flavour) | module("lora_unet_time_embed_0", flavour))
    chop(path, "--weights", f"{block}=0.5", "-o", tmp_path / "half.safetensors")
    (whole,), (half,) = added(read(path), name), added(read(tmp_path / "half.safetensors"), name)
    torch.testing.assert_close(half, 0.5 * whole)
    chop(path, "--keep", f"*,!{block}", "-o", tmp_path / "none.safetensors")
    assert {module_of(key) for key in read(tmp_path / "none.safetensors")} == {"lora_unet_time_embed_0"}


@pytest.mark.parametrize("magnitude", ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_of_dora_the_low_rank_part_is_scaled_and_a_warning_says_so(tmp_path: Path, magnitude: str, capsys):
    name = MODULE["OUT01"]
    tensors = module(name, "linear") | {f"{name}.{magnitude}": torch.rand(8, 1)}
    path = write(tmp_path / "in.safetensors", tensors, torch.float16)
    chop(path, "--weights", "OUT01=0.5", "-o", tmp_path / "out.safetensors")
    before, after = read(path), read(tmp_path / "out.safetensors")
    assert {key for key in before if not torch.equal(before[key], after[key])} == {f"{name}.lora_up.weight"}
    torch.testing.assert_close(added(after, name)[0], 0.5 * added(before, name)[0], rtol=1e-12, atol=1e-6)
    assert (
        capsys.readouterr().err
        == "warning: 1 DoRA layers: their low-rank part is scaled, their magnitude stays as it is\n"
    )
    for whole in ("OUT01=1", "OUT01=0,TE=1"):
        chop(path, "--weights", whole, "--allow-empty", "-o", tmp_path / "quiet.safetensors")
    assert not [line for line in capsys.readouterr().err.splitlines() if "DoRA" in line]


def test_what_is_not_scaled_may_be_of_any_dtype(tmp_path: Path):
    name = MODULE["OUT01"]
    tensors = module(name, "linear") | {f"{name}.alpha": torch.tensor(4)}
    save_file(tensors, tmp_path / "in.safetensors")
    chop(tmp_path / "in.safetensors", "--weights", "OUT01=0.5", "-o", tmp_path / "out.safetensors")
    after = read(tmp_path / "out.safetensors")
    assert after[f"{name}.alpha"].dtype == torch.int64 and after[f"{name}.alpha"] == 4
    assert torch.equal(after[f"{name}.lora_up.weight"], tensors[f"{name}.lora_up.weight"] / 2)


@pytest.mark.parametrize(
    ("end", "dtype", "said"),
    [
        ("oft_blocks", torch.float32, "of no flavour known here"),
        ("lora_up.weight", torch.float8_e4m3fn, "has dtype F8_E4M3"),
    ],
)
def test_what_cannot_be_scaled_is_named_and_can_be_kept_or_dropped(
    tmp_path: Path, end: str, dtype: torch.dtype, said: str
):
    key, path = f"{MODULE['OUT01']}.{end}", tmp_path / "in.safetensors"
    save_file({key: torch.ones(4, 4).to(dtype)} | module(MODULE["TE1"], "linear"), path)
    line = refused(path, "--weights", "OUT01=0.5", "-o", tmp_path / "out.safetensors", code=1)
    assert line == f"{path}: {key}: cannot be scaled by 0.5: {said}; 0 or 1 can be its weight"
    assert [one.name for one in tmp_path.iterdir()] == ["in.safetensors"]
    chop(path, "--weights", "TE=0.5", "-o", tmp_path / "kept.safetensors")
    assert key in read_header(tmp_path / "kept.safetensors").tensors
    chop(path, "--keep", "TE", "-o", tmp_path / "dropped.safetensors")
    assert key not in read_header(tmp_path / "dropped.safetensors").tensors


def test_a_weight_that_leaves_the_dtype_is_an_error_without_a_file(tmp_path: Path):
    name = MODULE["TE1"]
    tensors = module(name, "linear") | {f"{name}.lora_up.weight": torch.full((8, 4), 60000.0)}
    path = write(tmp_path / "in.safetensors", tensors, torch.float16)
    line = refused(path, "--weights", "TE1=2", "-o", tmp_path / "out.safetensors", code=1)
    assert line.startswith(f"{path}: {name}.lora_up.weight: 120000 does not fit F16")
    assert [one.name for one in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flavour", ["linear", "full", "norm"])
def test_a_weight_beyond_all_measure_is_one_line(tmp_path: Path, flavour: str, dtype: str, capsys):
    path = write(tmp_path / "in.safetensors", {k: 1e9 + 1e9 * one.abs() if dtype == "fp64" else one for k, one in module(MODULE["OUT01"], flavour).items()}, DTYPES[dtype])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = refused(path, "--weights", "OUT01=-1e300", "-o", tmp_path / "out.safetensors", code=1)
    assert MODULE["OUT01"] in line and "inf does not fit" in line and line.endswith("or scale by less than 1e+300")
    assert [one.name for one in tmp_path.iterdir()] == ["in.safetensors"]


def test_a_large_layer_is_scaled_piece_by_piece(tmp_path: Path):
    """Pieces meet without a seam, and two of them are not in memory for long."""
    numbers = np.random.default_rng(0).standard_normal(3 * PIECE // 2).astype("<f2")
    head = header_bytes(
        [(f"{MODULE['OUT01']}.diff", "F16", [3, PIECE // 2]), ("lora_te1_x.w_norm", "F16", [64 * PIECE])]
    )
    (tmp_path / "in.safetensors").write_bytes(head)
    with open(tmp_path / "in.safetensors", "r+b") as file:
        file.truncate(len(head) + 128 * PIECE)  # a hole of 128 MiB
        file.seek(0, 2)
        file.write(numbers.tobytes())
    code = """
import resource, numpy
from lorabuild.verbs.chop import main
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = used()
main(["in.safetensors", "--weights", "OUT01=0.5,TE1=3", "-o", "out.safetensors"])
print(used() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout.split()[-1]) < 64, f"{done.stdout} MiB more"
    after = (tmp_path / "out.safetensors").read_bytes()
    assert after.endswith((numbers / 2).tobytes()) and len(after) > 2 * 64 * PIECE


# What UIs read.


METADATA = {
    "ss_output_name": "big",
    "ss_network_dim": "8",
    "ss_tag_frequency": '{"a": {"ember": 3}}',
    "ss_base_model_version": "sdxl_base_v0-9",
    "modelspec.title": "Ember",
    "modelspec.hash_sha256": "0xold",
    "sshs_model_hash": "old",
    "sshs_legacy_hash": "old",
    "own": "ü\n",
}


def test_metadata_is_kept_and_its_hashes_are_those_of_the_new_file(tmp_path: Path):
    tensors = module(MODULE["OUT01"], "linear") | module(MODULE["INP04"], "linear") | module(MODULE["TE2"], "linear")
    path = write(tmp_path / "big.safetensors", tensors, metadata=METADATA)
    out = tmp_path / "folder" / "small v1.safetensors"  # the folder is made
    chop(path, "--keep", "TE2,OUT01", "--weights", "OUT01=0.25", "-o", out)
    header = read_header(out)
    body = hashlib.sha256(out.read_bytes()[header.data_start :]).hexdigest()
    changed = {"ss_output_name", "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"}
    assert {key: header.metadata[key] for key in METADATA.keys() - changed} == {
        key: METADATA[key] for key in METADATA.keys() - changed
    }
    assert header.metadata["ss_output_name"] == "small v1"
    assert header.metadata["sshs_model_hash"] == body
    assert header.metadata["modelspec.hash_sha256"] == f"0x{body}"
    assert "sshs_legacy_hash" not in header.metadata
    assert header.metadata["block_vector_string"] == "1,0,0,0,0,0,0,0,0,0,0,0,0,0.25,0,0,0,0,0,0,0"
    weights = json.loads(header.metadata["lorabuild.chop"])["keep"]
    assert weights == dict.fromkeys(BLOCKS, 0.0) | {"OUT01": 0.25, "TE2": 1.0}


def test_a_file_without_metadata_gets_what_uis_look_for(tmp_path: Path):
    path = write(tmp_path / "in.safetensors", module(MODULE["OUT01"], "linear"))
    chop(path, "--keep", "OUT01", "-o", tmp_path / "out.safetensors")
    metadata = read_header(tmp_path / "out.safetensors").metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1" and metadata["modelspec.title"] == "out"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0" and metadata["ss_v2"] == "False"
    assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_output_name"] == "out"


def test_equal_inputs_give_equal_bytes_whatever_the_order_in_the_file(tmp_path: Path):
    tensors = module(MODULE["OUT01"], "linear") | module(MODULE["TE1"], "linear")
    path = write(tmp_path / "in.safetensors", tensors, metadata=METADATA)
    chop(path, "--keep", "OUT01", "-o", tmp_path / "a/out.safetensors")
    chop(
        path,
        "--vector",
        "1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0",
        "--weights",
        "TE=0",
        "-o",
        tmp_path / "b/out.safetensors",
    )
    assert (tmp_path / "a/out.safetensors").read_bytes() == (tmp_path / "b/out.safetensors").read_bytes()
    assert list(read_header(tmp_path / "a/out.safetensors").tensors) == sorted(
        key for key in tensors if "output" in key
    )


# Ways to say what stays.


@pytest.fixture
def every_block(tmp_path: Path) -> Path:
    """A file whose ups are all 1: after a chop they are the weights."""
    ones = {f"{MODULE[block]}.lora_{side}.weight": torch.ones(1, 1) for block in BLOCKS for side in ("up", "down")}
    return write(tmp_path / "in.safetensors", ones)


def weights(path: Path) -> dict[str, float]:
    """Block -> its weight, of a chopped `every_block`."""
    found = {block_of_module(module_of(key)): one.item() for key, one in read(path).items() if "lora_up" in key}
    return {block: found.get(block, 0.0) for block in BLOCKS}


ALL, NONE = dict.fromkeys(BLOCKS, 1.0), dict.fromkeys(BLOCKS, 0.0)
COUNTING = [float(number) for number in range(2, 24)]
VECTOR_21 = dict(zip(VECTOR_BLOCKS, COUNTING, strict=False))
NO_TE = dict.fromkeys(TEXT_ENCODERS, 0.0)


def numbers(count: int, first: str = "1") -> str:
    return ",".join([first, *(f"{number:g}" for number in COUNTING[: count - 1])])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--vector", numbers(12)], ALL | dict(zip(ATTENTION_BLOCKS, COUNTING, strict=False))),
        (
            ["--vector", numbers(20)],
            ALL | dict(zip(UNET_BLOCKS[:9], COUNTING, strict=False)) | dict.fromkeys(UNET_BLOCKS[9:12], 11.0)
            | dict(zip(UNET_BLOCKS[12:], COUNTING[10:], strict=False)),
        ),
        (["--vector", numbers(21)], ALL | VECTOR_21 | {"INP00": 2.0}),
        (["--vector", numbers(22)], ALL | dict(zip(UNET_BLOCKS, COUNTING, strict=False))),
        (["--vector", numbers(21, "-1"), "--vector-style", "inspire"], VECTOR_21 | {"INP00": 2.0, "TE1": -1.0, "TE2": -1.0}),
        (["--vector", numbers(21, "-.5"), "--vector-style", "resize_lora"], {**{block: -0.5 * one for block, one in VECTOR_21.items()}, "INP00": -1.0, "TE1": 1.0, "TE2": 1.0}),
        ([f"--vector={numbers(21, '-1')}", "--vector-style=inspire"], VECTOR_21 | {"INP00": 2.0, "TE1": -1.0, "TE2": -1.0}),
        (["--vector", "SDXL-OUTALL"], {block: float(block not in ATTENTION_BLOCKS or block.startswith("OUT")) for block in BLOCKS}),
        (["--vector", "SDXL-LyC-OUTALL"], {block: float(block.startswith(("OUT", "TE"))) for block in BLOCKS}),
        (["--vector", "SDXL-LyC-NONE", "--weights", "TE=2", "--allow-empty"], NONE),
        (["--vector", "MINE:0," + ",".join("1" * 20)], ALL | NO_TE),
        (["--vector", "%default=0,out2=1"], NONE | {"OUT01": 1.0}),
        (["--vector", "%default=-1,in=0.5,base=1"], {block: {"I": 0.5, "T": 1.0}.get(block[0], -1.0) for block in BLOCKS}),
        (["--keep", "TE, OUT01"], NONE | {"OUT01": 1.0, "TE1": 1.0, "TE2": 1.0}),
        (["--keep", "IN*,!INP00,MID01"], {block: float(block == "MID01" or (block[0] == "I" and block != "INP00")) for block in BLOCKS}),
        (["--keep", "!OUT08"], ALL | {"OUT08": 0.0}),
        (["--keep", "", "--allow-empty"], NONE),
        (["--weights", "OUT01=-0.5,TE=.25,TE2=3"], ALL | {"OUT01": -0.5, "TE1": 0.25, "TE2": 3.0}),
        (["--keep", "OUT*", "--weights", "OUT01=0.5,INP04=2"], {block: float(block.startswith("OUT")) for block in BLOCKS} | {"OUT01": 0.5}),
    ],
)  # fmt: skip
def test_vectors_names_and_weights_say_what_stays(every_block: Path, tmp_path: Path, args, expected):
    chop(every_block, "-o", tmp_path / "out.safetensors", *args)
    assert weights(tmp_path / "out.safetensors") == expected


def test_in_resize_loras_style_the_numbers_are_those_of_the_blocks_that_the_file_has(tmp_path: Path):
    present = ("INP04", "MID01", "OUT08", "TE1")
    path = write(
        tmp_path / "in.safetensors", {f"{MODULE[block]}.lora_up.weight": torch.ones(1, 1) for block in present}
    )
    chop(path, "--vector", "-1,2,0,4", "--vector-style", "resize_lora", "-o", tmp_path / "out.safetensors")
    assert weights(tmp_path / "out.safetensors") == NONE | {"INP04": -2.0, "OUT08": -4.0, "TE1": 1.0}
    args = (path, "--vector", "1,2,0,4", "-o", tmp_path / "other.safetensors")
    assert "12, 20, 21 or 22 numbers are expected, got 4" in refused(*args, code=2)
    assert "for this file also 4" in refused(
        path, "--vector", "1,1", "--vector-style", "resize_lora", *args[3:], code=2
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--vector", numbers(21, "0")], "the first number is 0: resize_lora multiplies the U-Net by it, Inspire-Pack the text encoders"),
        (["--vector", numbers(12, "-1")], 'say which by --vector-style "resize_lora" or "inspire", or write 1'),
        (["--vector", "SDXL-NONE", "--vector-style", "resize_lora"], '--vector-style "resize_lora" contradicts it'),
        *((["--vector", f"1,{letter}" + ",1" * 10], f'number 2 is "{letter}": a number') for letter in "RUABrxé"),
        (["--vector", "1,1"], "12, 20, 21 or 22 numbers are expected, got 2"),
        (["--vector", "SDXL-OUTAL"], 'did you mean "SDXL-OUTALL"?'),
        (["--vector", "%default=1,out12=0"], "the file has 9 OUT blocks"),
        (["--vector", numbers(12), "--keep", "TE"], '"keep" and "vector" both say which blocks stay'),
        (["--keep", "OUT1"], '"OUT1": no such block (did you mean "OUT01"?)'),
        (["--keep", "OUX*"], '"OUX*": matches no block'),
        (["--weights", "OUT01"], '--weights: "OUT01": expected a block and a number'),
        (["--weights", "OUT01=half"], '--weights: "OUT01=half"'),
        (["--weights", "OUT01=nan"], "a finite number is expected"),
        (["--weights", "OUT0*=1"], '"OUT0*": no such block'),
        (["--weights", "-1=2"], '"-1": no such block'),
        ([], "say what stays: --keep, --vector or --weights"),
        (["--kep", "TE"], "unrecognized arguments"),
        (["--keep", "TE", "--keep", "OUT01"], 'argument --keep: given twice: join the values by ","'),
        (["--weights", "TE=1", "--weights=TE=2"], 'argument --weights: given twice: join the values by ","'),
        (["--vector", numbers(12), "--vector", numbers(12)], "argument --vector: given twice"),
        (["--weights", "OUT01=0.5,OUT01=0.2"], "--weights: OUT01 stands twice"),
        (["--keep", "TE", "--vector-style", "inspire"], "--vector-style says how to read a --vector, and there is none"),
        (["--vector"], "expected one argument"),
        (["--vector", numbers(12), "--vector-style", "lbw"], "invalid choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line_and_no_file(every_block: Path, tmp_path: Path, args: list[str], said: str):
    assert said in refused(every_block, "-o", tmp_path / "out.safetensors", *args, code=2)
    assert [one.name for one in tmp_path.iterdir()] == ["in.safetensors"]


def test_a_named_block_that_the_file_lacks_is_a_warning(tmp_path: Path, capsys):
    path = write(tmp_path / "in.safetensors", module(MODULE["OUT01"], "linear"))
    out = tmp_path / "out.safetensors"
    chop(path, "--keep", "OUT01,OUT02,IN*,TE,!TE2", "-o", out)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {block} is kept, but has no tensors here: it has OUT01" for block in ("OUT02", "TE1")
    ]
    chop(path, "--weights", "OUT02=0.5,OUT03=0", "-o", out)
    assert capsys.readouterr().err.splitlines() == ["warning: OUT02 is kept, but has no tensors here: it has OUT01"]
    chop(path, "--vector", "SDXL-LyC-ALL", "-o", out)
    assert capsys.readouterr().err == ""


def test_a_weight_of_a_block_that_is_dropped_is_a_warning(every_block: Path, tmp_path: Path, capsys):
    out = tmp_path / "out.safetensors"
    chop(every_block, "--keep", "TE1,OUT01", "--weights", "OUT02=0.5,TE=0.5,OUT03=0,OUT01=2", "-o", out)
    assert capsys.readouterr().err == "warning: OUT02 has a weight, but is dropped: keep it, too, if it is to stay\n"
    chop(every_block, "--vector", "SDXL-LyC-INALL", "--weights", "OUT02=0.5,INP01=2", "-o", out)
    assert capsys.readouterr().err.startswith("warning: OUT02 has a weight")


def test_it_says_what_it_did(every_block: Path, tmp_path: Path, capsys):
    out = tmp_path / "out.safetensors"
    chop(every_block, "--keep", "!IN*,!MID*,!OUT00", "-o", out)
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: 20 of 46 tensors, 3.0 kB of 4.8 kB; dropped INP00, INP01,") and said.endswith(
        "MID02, OUT00\n"
    )


# Files that are none.


def test_the_input_is_never_written_over(every_block: Path, tmp_path: Path, monkeypatch):
    before = every_block.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(every_block)
    os.link(every_block, tmp_path / "hard.safetensors")
    monkeypatch.chdir(tmp_path)
    for out in (every_block, "in.safetensors", "./in.safetensors", "link.safetensors", "hard.safetensors"):
        assert "is the input itself" in refused(every_block, "--keep", "TE", "-o", out, code=2)
    assert every_block.read_bytes() == before


@pytest.mark.parametrize("name", ["out", "out.ckpt", "out.safetensors.bak", ".safetensors"])
def test_a_name_that_uis_would_not_load_is_refused(every_block: Path, tmp_path: Path, name: str):
    line = refused(every_block, "--keep", "TE", "-o", tmp_path / name, code=2)
    assert line.endswith("the output's name must end in .safetensors")
    assert [one.name for one in tmp_path.iterdir()] == ["in.safetensors"]


def test_nothing_left_is_an_error_unless_allowed(tmp_path: Path):
    path = write(tmp_path / "in.safetensors", module(MODULE["OUT01"], "linear") | module(MODULE["TE2"], "linear"))
    out = tmp_path / "out.safetensors"
    line = refused(path, "--keep", "INP04", "-o", out, code=1)
    assert line == f"{path}: nothing would be left: it has OUT01, TE2 (--allow-empty permits it)"
    assert not out.exists()
    chop(path, "--keep", "INP04", "--allow-empty", "-o", out)
    assert read(out) == {} and read_header(out).metadata["block_vector_string"].startswith("1,0,0,0,1,0")


def test_tensors_of_no_block_stay(tmp_path: Path):
    others = module("lora_unet_time_embed_0", "linear") | {"bundle_emb.x.string_to_param.*": torch.ones(2, 2)}
    path = write(tmp_path / "in.safetensors", others | module(MODULE["OUT01"], "linear"))
    chop(path, "--keep", "", "-o", tmp_path / "out.safetensors")
    assert same(read(tmp_path / "out.safetensors"), others)


def damaged(folder: Path) -> dict[str, tuple[Path, str]]:
    """What a user may give instead of a LoRA, and a word of the answer."""
    whole = write(folder / "whole.safetensors", module(MODULE["OUT01"], "linear")).read_bytes()
    torch.save({"x": torch.ones(2)}, folder / "pickle.ckpt")
    torch.save({"x": torch.ones(2)}, folder / "renamed.safetensors")
    (folder / "folder").mkdir()
    for name, data in {
        "truncated": whole[:-1],
        "longer": whole + b"x",
        "header": whole[:40],
        "empty": b"",
        "text": b"no LoRA, but some words" * 9,
    }.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    return {
        "truncated": (folder / "truncated.safetensors", "truncated"),
        "longer": (folder / "longer.safetensors", "1 bytes too many"),
        "header": (folder / "header.safetensors", "truncated"),
        "empty": (folder / "empty.safetensors", "0 bytes long"),
        "text": (folder / "text.safetensors", "not a safetensors file"),
        "pickle": (folder / "pickle.ckpt", "a pickle"),
        "renamed": (folder / "renamed.safetensors", "a pickle"),
        "folder": (folder / "folder", "a folder; a .safetensors file was expected"),
        "missing": (folder / "missing.safetensors", "no such file"),
    }  # fmt: skip


DAMAGED = ("truncated", "longer", "header", "empty", "text", "pickle", "renamed", "folder", "missing")


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_lora_is_one_line_and_no_file(tmp_path: Path, name: str):
    path, said = damaged(tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    line = refused(path, "--keep", "OUT01", "-o", tmp_path / "out.safetensors", code=1)
    assert line.startswith(f"{path}: ") and said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_chop_leaves_the_old_output(tmp_path: Path):
    name, out = MODULE["TE1"], tmp_path / "out.safetensors"
    tensors = module(name, "linear") | {f"{name}.lora_up.weight": torch.tensor([[1.0, float("nan")]])}
    path = write(tmp_path / "in.safetensors", tensors)
    chop(path, "--keep", "TE", "-o", out)
    before = out.read_bytes()
    line = refused(path, "--weights", "TE=0.5", "-o", out, code=1)
    assert line.startswith(f"{path}: {name}.lora_up.weight: holds NaN or infinity")
    assert out.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    chop(path, "--keep", "TE", "--weights", "OUT01=1", "-o", out)  # and a good one replaces it
    assert out.read_bytes() == before


def test_the_command_ends_with_its_codes_and_without_a_traceback(every_block: Path, tmp_path: Path):
    def run(*args: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "lorabuild", "chop", *map(str, args)], capture_output=True, text=True, cwd=tmp_path
        )

    done = run(every_block, "--vector", numbers(21, "-1"), "--vector-style", "inspire", "-o", "out.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["out.safetensors: 46 of 46 tensors, 5.8 kB of 4.8 kB; dropped nothing"]
    assert weights(tmp_path / "out.safetensors")["TE1"] == -1
    for code, args in {
        2: (every_block, "--keep", "OUT1", "-o", "2.safetensors"),
        1: ("missing.safetensors", "--keep", "OUT01", "-o", "1.safetensors"),
    }.items():
        done = run(*args)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
        assert "Traceback" not in done.stderr and not (tmp_path / args[-1]).exists()
    assert run("--help").returncode == 0


@pytest.mark.parametrize(("weight", "imported"), [("1", set()), ("0.5", {"numpy"})])
def test_zeros_and_ones_import_no_tensor_library(every_block: Path, tmp_path: Path, weight: str, imported: set[str]):
    args = [str(every_block), "--keep", "OUT*", "--weights", f"OUT01={weight}", "-o", str(tmp_path / "out.safetensors")]
    code = f"import sys; from lorabuild.verbs.chop import main; main({args}); print(sorted({{'torch', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(sorted(imported))
