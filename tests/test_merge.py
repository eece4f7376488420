"""A merge is Σ weight · ΔW of every layer, to the last digit that the dtype has, and a file that all our verbs take."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_lab import layer, write_lora
from lycoris import functional
from safetensors import safe_open
from safetensors.torch import save_file

from lorabuild.errors import JobError, UsageError
from lorabuild.header import read_header
from lorabuild.lora.canonical import canonical
from lorabuild.lora.layers import read_layers
from lorabuild.lora.merge import product_rank
from lorabuild.nn.factors import read_factors
from lorabuild.nn.merge import as_product
from lorabuild.verbs.chop import main as chop
from lorabuild.verbs.merge import main, parse_argument
from lorabuild.verbs.resize import main as resize

LINEAR = "lora_unet_output_blocks_1_1_proj_in"  # OUT01
OTHER = "lora_unet_input_blocks_4_1_proj_in"  # INP04
CONV = "lora_unet_input_blocks_4_0_in_layers_2"
SKIP = "lora_unet_input_blocks_4_0_skip_connection"
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
NORM = "lora_unet_input_blocks_4_1_norm"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EXACT = {"fp16": 2e-3, "bf16": 1e-2, "fp32": 1e-6}  # relative; bf16 has 8 bits

# Kind of adapter -> the weight that it changes, the sizes of its tensors, whether exact factors are smaller than it.
SHAPE, CONV_SHAPE = (24, 16), (24, 16, 3, 3)
KINDS: dict[str, tuple[tuple[int, ...], dict[str, tuple[int, ...]], bool]] = {
    "lora": (SHAPE, {"up": (24, 4), "down": (4, 16)}, True),
    "lora of more ranks than sides": (SHAPE, {"up": (24, 40), "down": (40, 16)}, True),
    "lora 1x1": ((24, 16, 1, 1), {"up": (24, 4, 1, 1), "down": (4, 16, 1, 1)}, True),
    "lora 3x3": (CONV_SHAPE, {"up": (24, 4, 1, 1), "down": (4, 16, 3, 3)}, True),
    "lora flat": (CONV_SHAPE, {"up": (24, 4), "down": (4, 144)}, True),
    "lora tucker": (CONV_SHAPE, {"up": (24, 4, 1, 1), "mid": (4, 5, 3, 3), "down": (5, 16, 1, 1)}, True),
    "loha": (SHAPE, {"w1_a": (24, 3), "w1_b": (3, 16), "w2_a": (24, 3), "w2_b": (3, 16)}, True),
    "loha of full rank": (SHAPE, {"w1_a": (24, 4), "w1_b": (4, 16), "w2_a": (24, 4), "w2_b": (4, 16)}, False),
    "loha flat": (CONV_SHAPE, {"w1_a": (24, 3), "w1_b": (3, 144), "w2_a": (24, 3), "w2_b": (3, 144)}, True),
    "loha flat of full rank": (CONV_SHAPE, {"w1_a": (24, 5), "w1_b": (5, 144), "w2_a": (24, 5), "w2_b": (5, 144)}, False),
    "loha tucker": (
        CONV_SHAPE,
        {"w1_a": (3, 24), "w1_b": (3, 16), "t1": (3, 3, 3, 3), "w2_a": (3, 24), "w2_b": (3, 16), "t2": (3, 3, 3, 3)},
        False,
    ),
    "lokr": (SHAPE, {"w1": (4, 4), "w2_a": (6, 2), "w2_b": (2, 4)}, True),
    "lokr both": (SHAPE, {"w1_a": (4, 2), "w1_b": (2, 4), "w2_a": (6, 2), "w2_b": (2, 4)}, True),
    "lokr whole": (SHAPE, {"w1": (4, 4), "w2": (6, 4)}, False),
    "lokr whole, tall and wide": ((24, 24), {"w1": (8, 2), "w2": (3, 12)}, True),
    "lokr 3x3": (CONV_SHAPE, {"w1": (4, 4), "w2_a": (6, 2), "w2_b": (2, 4, 3, 3)}, True),
    "lokr 3x3 whole": (CONV_SHAPE, {"w1": (4, 4), "w2": (6, 4, 3, 3)}, False),
    "lokr tucker": (CONV_SHAPE, {"w1_a": (4, 3), "w1_b": (3, 4), "w2_a": (2, 6), "w2_b": (2, 4), "t2": (2, 2, 3, 3)}, True),
    "full": (SHAPE, {"diff": SHAPE}, False),
    "full 3x3": (CONV_SHAPE, {"diff": CONV_SHAPE}, False),
}  # fmt: skip
ENDS = {"lora": ".lora_{}.weight", "loha": ".hada_{}", "lokr": ".lokr_{}", "full": ".{}"}
RANK = {"lora": ("down",), "loha": ("w1_b",), "lokr": ("w2_b", "w1_b"), "full": ()}


def adapter(
    kind: str, name: str, dtype: torch.dtype = torch.float16, alpha: float = 2.0, seed: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A random adapter in `dtype`, and what it adds to the base [O, J] in float64, by LyCORIS' formulas."""
    shape, sizes, _ = KINDS[kind]
    flavour, random = kind.partition(" ")[0], torch.Generator().manual_seed(seed)
    own = {role: (torch.randn(size, generator=random) / 3).to(dtype) for role, size in sizes.items()}
    get = {role: tensor.double() for role, tensor in own.items()}.get
    if flavour == "lora":
        up, down = get("up").flatten(1), get("down")
        if "mid" in own:
            down = torch.einsum("rs...,si->ri...", get("mid"), down.flatten(1))
        delta = up @ down.flatten(1)
    elif flavour == "loha":
        wanted = [get(role) for role in ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")]
        delta = functional.loha.diff_weight(*wanted, gamma=torch.tensor(1.0), backend="torch")
    elif flavour == "lokr":
        wanted = [get(role) for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
        delta = functional.lokr.kron_weight(*wanted, scale=1.0, backend="torch")
    else:
        delta = get("diff")
    rank = next((sizes[role][0] for role in RANK[flavour] if role in sizes), None)
    tensors = {name + ENDS[flavour].format(role): tensor for role, tensor in own.items()}
    tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors, delta.reshape(shape[0], -1) * (tensors[f"{name}.alpha"].item() / rank if rank else 1.0)


def save(path: Path, *tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    """All tensors, each in its own dtype, with metadata."""
    save_file({name: one.contiguous() for part in tensors for name, one in part.items()}, path, metadata or None)
    return path


def read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary


PAIRS = {
    ".lora_up.weight": ".lora_down.weight",
    ".lora_B.weight": ".lora_A.weight",
    ".lora.up.weight": ".lora.down.weight",
    "_lora.up.weight": "_lora.down.weight",
}


def effects(path: Path) -> dict[str, torch.Tensor]:
    """Layer -> what a loader adds to the base [O, J] in float64, of low-rank layers and of differences."""
    tensors = {name: one.double() for name, one in read(path).items()}
    found = {name.removesuffix(".diff"): one.flatten(1) for name, one in tensors.items() if name.endswith(".diff")}
    for up, down in PAIRS.items():
        for name in (name.removesuffix(up) for name in tensors if name.endswith(up)):
            left, right = tensors[name + up].flatten(1), tensors[name + down].flatten(1)
            found[name] = left @ right * (tensors[f"{name}.alpha"] / len(right) if f"{name}.alpha" in tensors else 1)
    return found


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def merge(out: Path, *files: str | Path, dtype: str | None = None) -> Path:
    assert main([*map(str, files), "-o", str(out), *(["--dtype", dtype] if dtype else [])]) == 0
    return out


def peft(name: str, out: int, rank: int, columns: int, seed: int = 0) -> dict[str, torch.Tensor]:
    own = layer("x", out, rank, columns, alpha=None, seed=seed)
    return {f"{name}.lora_B.weight": own["x.lora_up.weight"], f"{name}.lora_A.weight": own["x.lora_down.weight"]}


# What is added up.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_flavour_adds_up_with_a_lora(tmp_path: Path, kind: str, dtype: str):
    shape, _, is_low_rank = KINDS[kind]
    partner = "lora 3x3" if len(shape) == 4 and shape[2] == 3 else "lora 1x1" if len(shape) == 4 else "lora"
    wide = {**layer(CONV, 24, 4, 24, alpha=4.0, seed=1)}
    one, its = adapter(kind, CONV, DTYPES[dtype], alpha=3.0)
    if shape == (24, 24):
        other = {name: tensor.to(DTYPES[dtype]) for name, tensor in wide.items()}
        get = {name: tensor.double() for name, tensor in other.items()}.get
        others = get(f"{CONV}.lora_up.weight") @ get(f"{CONV}.lora_down.weight")
    else:
        other, others = adapter(partner, CONV, DTYPES[dtype], alpha=4.0, seed=1)
    files = save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", other)
    out = merge(tmp_path / "out.safetensors", f"{files[0]}:0.7", f"{files[1]}:-1.3", dtype=dtype)
    assert effects(out).keys() == {CONV}
    assert distance(effects(out)[CONV], 0.7 * its - 1.3 * others) < EXACT[dtype]
    assert (f"{CONV}.diff" in read(out)) is not is_low_rank
    assert {tensor.dtype for tensor in read(out).values()} == {DTYPES[dtype]}


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_by_shapes_are_those_that_are_read(tmp_path: Path, kind: str):
    path = save(tmp_path / "a.safetensors", adapter(kind, LINEAR)[0])
    (found,) = read_layers(read_header(path).tensors)[0]
    rank = product_rank(found)
    assert (rank is not None) is KINDS[kind][2]
    if rank is not None:
        factors = read_factors(path, found)
        product = as_product(factors)
        assert product.up.shape[1] == len(product.down) == rank
        assert np.allclose(product.dense(), factors.dense(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_four_flavours_of_one_layer_are_one_low_rank_layer(tmp_path: Path, dtype: str):
    files, expected = [], torch.zeros(SHAPE, dtype=torch.float64)
    for number, kind in enumerate(("lora", "loha", "lokr", "lora of more ranks than sides")):
        tensors, delta = adapter(kind, LINEAR, DTYPES[dtype], alpha=1.0 + number, seed=number)
        files.append(f"{save(tmp_path / f'{number}.safetensors', tensors)}:{number - 1.5}")
        expected += (number - 1.5) * delta
    out = merge(tmp_path / "out.safetensors", *files, dtype=dtype)
    assert distance(effects(out)[LINEAR], expected) < EXACT[dtype]
    assert read(out)[f"{LINEAR}.lora_down.weight"].shape == (4 + 9 + 8 + 40, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_downs_stay_bit_for_bit_and_alpha_is_one_for_the_file(tmp_path: Path, dtype: str):
    a = {**layer(LINEAR, 24, 4, 16, alpha=2.0), **layer(CONV, 8, 2, 8, 3, 3, alpha=2.0)}
    b = {**layer(LINEAR, 24, 8, 16, alpha=5.0, seed=1), **layer(TEXT, 8, 2, 8, alpha=2.0)}
    one = write_lora(tmp_path / "a.safetensors", a, DTYPES[dtype])
    two = write_lora(tmp_path / "b.safetensors", b, DTYPES[dtype])
    found = read(merge(tmp_path / "out.safetensors", f"{one}:0.7", f"{two}:-0.3", dtype=dtype))
    downs = torch.cat([read(path)[f"{LINEAR}.lora_down.weight"] for path in (one, two)])
    assert torch.equal(found[f"{LINEAR}.lora_down.weight"], downs)
    assert {tensor.item() for name, tensor in found.items() if name.endswith(".alpha")} == {2.0}
    assert found[f"{CONV}.lora_down.weight"].shape == (2, 8, 3, 3)
    assert found[f"{CONV}.lora_up.weight"].shape == (8, 2, 1, 1)


@pytest.mark.parametrize("seed", range(12))
def test_random_worlds_add_up(tmp_path: Path, seed: int):
    """Files of any flavours, with layers in some of them only, block weights and dtypes."""
    random = np.random.default_rng(seed)
    dtype = str(random.choice(list(DTYPES)))
    names = {LINEAR: SHAPE, OTHER: SHAPE, TEXT: SHAPE, CONV: CONV_SHAPE, "unknown_module": SHAPE}
    blocks = {LINEAR: "OUT01", OTHER: "INP04", TEXT: "TE1", CONV: "INP04"}
    expected: dict[str, torch.Tensor] = {}
    files = []
    for number in range(int(random.integers(1, 5))):
        weight = round(float(random.normal()), 3)
        own = {block: round(float(random.normal()), 2) for block in ("OUT01", "INP04", "TE1") if random.random() < 0.5}
        tensors: dict[str, torch.Tensor] = {}
        for name, shape in names.items():
            if random.random() < 0.3:
                continue
            kind = str(random.choice([kind for kind, (its, *_) in KINDS.items() if its == shape]))
            alpha = float(random.choice([1, 2, 2, 8]))
            made, delta = adapter(kind, name, DTYPES[dtype], alpha, seed=int(random.integers(1 << 30)))
            tensors |= made
            factor = weight * own.get(blocks.get(name, ""), 1.0)
            expected[name] = expected.get(name, torch.zeros_like(delta)) + factor * delta
        if tensors:
            path = save(tmp_path / f"{number}.safetensors", tensors)
            files.append(f"{path}:{weight}" + (":" + ",".join(f"{b}={w}" for b, w in own.items()) if own else ""))
    out = merge(tmp_path / "out.safetensors", *files, dtype=dtype)
    found = effects(out)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert distance(found[name], delta) < EXACT[dtype], name


def test_what_is_multiplied_by_zero_is_absent(tmp_path: Path):
    tensors = {
        **layer(LINEAR, 8, 2, 8),
        **layer(TEXT, 8, 2, 8),
        **layer(OTHER, 8, 2, 8, alpha=0.0),
        f"{NORM}.w_norm": torch.ones(4),
    }
    a = write_lora(tmp_path / "a.safetensors", tensors | {"lora_te1_x.thing": torch.ones(2)})
    b = write_lora(tmp_path / "b.safetensors", layer(LINEAR, 8, 3, 8, seed=1))
    out = merge(tmp_path / "out.safetensors", f"{a}:1:TE=0,INP04=0", f"{b}:0")
    assert {name.partition(".")[0] for name in read(out)} == {LINEAR}
    assert read(out)[f"{LINEAR}.lora_down.weight"].shape == (2, 8)
    with pytest.raises(JobError, match="nothing would be left"):
        main([f"{a}:0", f"{b}:0", "-o", str(tmp_path / "none.safetensors")])
    assert not (tmp_path / "none.safetensors").exists()


def test_norms_and_biases_are_weighted_sums(tmp_path: Path):
    one = {
        f"{NORM}.w_norm": torch.tensor([1.0, 2.0]),
        f"{NORM}.b_norm": torch.tensor([4.0, 0.0]),
        **layer(LINEAR, 4, 2, 4),
    }
    two = {
        f"{NORM}.w_norm": torch.tensor([10.0, 20.0]),
        f"{LINEAR}.diff_b": torch.ones(4),
        f"{TEXT}_norm.diff": torch.ones(3),
    }
    a, b = write_lora(tmp_path / "a.safetensors", one), write_lora(tmp_path / "b.safetensors", two)
    found = read(merge(tmp_path / "out.safetensors", f"{a}:0.5", f"{b}:2:OUT01=0.25"))
    assert found[f"{NORM}.w_norm"].tolist() == [20.5, 41.0]
    assert found[f"{NORM}.b_norm"].tolist() == [2.0, 0.0]
    assert found[f"{LINEAR}.diff_b"].tolist() == [0.5] * 4
    assert found[f"{TEXT}_norm.diff"].tolist() == [2.0] * 3


def test_a_file_can_be_taken_from_another(tmp_path: Path):
    a = write_lora(tmp_path / "a.safetensors", {**layer(LINEAR, 8, 2, 8), **layer(TEXT, 8, 2, 8)})
    b = write_lora(tmp_path / "b.safetensors", layer(LINEAR, 8, 2, 8))
    out = merge(tmp_path / "out.safetensors", a, f"{b}:-1")
    assert effects(out)[LINEAR].abs().max() == 0
    assert distance(effects(out)[TEXT], effects(a)[TEXT]) < 1e-3


def test_one_file_can_be_weighted(tmp_path: Path):
    a = write_lora(tmp_path / "a.safetensors", layer(LINEAR, 8, 2, 8))
    out = merge(tmp_path / "out.safetensors", f"{a}:0.5")
    assert distance(effects(out)[LINEAR], 0.5 * effects(a)[LINEAR]) < 1e-3


# Numbers.


@pytest.mark.parametrize(
    ("up", "down", "weight"), [(1e-2, 1.0, 1e-5), (1e-4, 30.0, 1e-2), (3e4, 1e-3, 40.0), (1e-6, 1e4, 1.0)]
)
def test_halves_keep_their_digits_at_the_ends_of_their_range(tmp_path: Path, up: float, down: float, weight: float):
    own = layer(LINEAR, 32, 4, 64)
    own[f"{LINEAR}.lora_up.weight"] *= up / own[f"{LINEAR}.lora_up.weight"].abs().max()
    own[f"{LINEAR}.lora_down.weight"] *= down / own[f"{LINEAR}.lora_down.weight"].abs().max()
    a = write_lora(tmp_path / "a.safetensors", own, torch.float32)
    b = write_lora(tmp_path / "b.safetensors", layer(LINEAR, 32, 4, 64, seed=1), torch.float32)
    small = merge(tmp_path / "small.safetensors", f"{a}:{weight}", f"{b}:1:OUT01=0", dtype="fp16")
    assert distance(effects(small)[LINEAR], weight * effects(a)[LINEAR]) < EXACT["fp16"]
    both = merge(tmp_path / "both.safetensors", f"{a}:{weight}", b, dtype="fp16")
    assert distance(effects(both)[LINEAR], weight * effects(a)[LINEAR] + effects(b)[LINEAR]) < EXACT["fp16"]


def test_a_power_of_two_moves_and_nothing_else(tmp_path: Path):
    a = write_lora(tmp_path / "a.safetensors", layer(LINEAR, 32, 4, 64))
    before = read(a)[f"{LINEAR}.lora_down.weight"].double()
    after = read(merge(tmp_path / "out.safetensors", f"{a}:0.00001"))[f"{LINEAR}.lora_down.weight"].double()
    ratio = after.norm(dim=1) / before.norm(dim=1)
    assert (ratio < 1).all()
    powers = 2.0 ** ratio.log2().round()
    assert (after - before * powers[:, None]).abs().max() <= 2.0**-25  # what the least halves resolve


def test_a_number_beyond_the_dtype_is_named_and_nothing_is_written(tmp_path: Path):
    a = write_lora(tmp_path / "a.safetensors", {f"{LINEAR}.diff": torch.full((2, 2), 60000.0)})
    with pytest.raises(JobError, match=rf"{LINEAR}\.diff: 120000 does not fit F16"):
        main([f"{a}:2", "-o", str(tmp_path / "out.safetensors")])
    with pytest.raises(JobError, match=rf"{LINEAR}\.diff: (inf|nan) does not fit F16"):
        main([f"{a}:1e308:OUT01=1e308", "-o", str(tmp_path / "out.safetensors")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]


def test_a_difference_too_small_for_halves_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture):
    a = write_lora(tmp_path / "a.safetensors", adapter("full", LINEAR)[0])
    merge(tmp_path / "out.safetensors", f"{a}:0.000001")
    assert f"warning: fp16 is too coarse for {LINEAR}.diff" in capsys.readouterr().err
    out = merge(tmp_path / "out.safetensors", f"{a}:0.000001", dtype="fp32")
    assert distance(effects(out)[LINEAR], 1e-6 * effects(a)[LINEAR]) < 1e-6
    merge(tmp_path / "out.safetensors", f"{a}:0.5")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stored", ["fp16", "bf16", "fp32"])
def test_halves_are_written_whatever_the_files_hold(tmp_path: Path, stored: str):
    for name in "ab":
        write_lora(tmp_path / f"{name}.safetensors", layer(LINEAR, 8, 2, 8), DTYPES[stored])
    out = merge(tmp_path / "out.safetensors", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert {tensor.dtype for tensor in read(out).values()} == {DTYPES["fp16"]}


def test_the_alpha_of_a_lokr_without_ranks_does_not_count(tmp_path: Path):
    lokr = {**adapter("lokr whole, tall and wide", OTHER)[0], f"{OTHER}.alpha": torch.tensor(1e4).half()}
    a = save(tmp_path / "a.safetensors", lokr)
    b = write_lora(tmp_path / "b.safetensors", layer(LINEAR, 8, 2, 8, alpha=4.0))
    out = merge(tmp_path / "out.safetensors", a, b)
    assert read(out)[f"{OTHER}.alpha"].item() == read(out)[f"{LINEAR}.alpha"].item() == 4.0
    assert distance(effects(out)[OTHER], adapter("lokr whole, tall and wide", OTHER)[1]) < EXACT["fp16"]


# Names.

SPELLINGS = {  # of LINEAR, TEXT: names, and how up and down are called
    "kohya": (LINEAR, TEXT, "kohya"),
    "kohya, diffusers blocks": ("lora_unet_up_blocks_0_attentions_1_proj_in", TEXT, "kohya"),
    "peft": ("unet.up_blocks.0.attentions.1.proj_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1", "peft"),
    "sgm paths": ("diffusion_model.output_blocks.1.1.proj_in", "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "kohya"),
}  # fmt: skip


def spelled(spelling: str, which: tuple[int, ...] = (0, 1), seed: int = 0) -> dict[str, torch.Tensor]:
    *names, ends = SPELLINGS[spelling]
    make = peft if ends == "peft" else lambda name, *sizes, seed: layer(name, *sizes, alpha=3.0, seed=seed)
    return dict(chain(*(make(names[one], 12, 4, 8, seed=seed + one).items() for one in which)))


@pytest.mark.parametrize("second", SPELLINGS)
@pytest.mark.parametrize("first", SPELLINGS)
def test_layers_meet_whatever_their_names_are(tmp_path: Path, first: str, second: str):
    a = write_lora(tmp_path / "a.safetensors", spelled(first))
    b = write_lora(tmp_path / "b.safetensors", spelled(second, seed=5))
    found = effects(merge(tmp_path / "out.safetensors", f"{a}:0.7", f"{b}:0.3"))
    assert found.keys() == (effects(a).keys() if first == second else {LINEAR, TEXT})
    one, two = ({canonical(name) or TEXT: delta for name, delta in effects(path).items()} for path in (a, b))
    for name, delta in found.items():
        known = canonical(name) or TEXT
        assert distance(delta, 0.7 * one[known] + 0.3 * two[known]) < EXACT["fp16"]
    assert any(".alpha" in name for name in read(tmp_path / "out.safetensors")) is not (first == second == "peft")


@pytest.mark.parametrize("second", SPELLINGS)
@pytest.mark.parametrize("first", SPELLINGS)
def test_files_without_a_common_layer_still_have_one_spelling(tmp_path: Path, first: str, second: str):
    a = write_lora(tmp_path / "a.safetensors", spelled(first, (0,)))
    b = write_lora(tmp_path / "b.safetensors", spelled(second, (1,)))
    found = effects(merge(tmp_path / "out.safetensors", a, b)).keys()
    is_kohya = {first, second} <= {"kohya", "kohya, diffusers blocks"}
    kept = effects(a).keys() | effects(b).keys()
    assert found == (kept if first == second or is_kohya else {LINEAR, TEXT}) or found == kept == {LINEAR, TEXT}


def test_an_unknown_layer_keeps_its_name(tmp_path: Path):
    a = write_lora(tmp_path / "a.safetensors", {**spelled("peft"), **layer("other.model.thing", 8, 2, 8)})
    b = write_lora(tmp_path / "b.safetensors", {**spelled("kohya"), **layer("other.model.thing", 8, 2, 8, seed=1)})
    found = effects(merge(tmp_path / "out.safetensors", a, b))
    assert found.keys() == {LINEAR, TEXT, "other.model.thing"}
    name = "other.model.thing"
    assert distance(found[name], effects(a)[name] + effects(b)[name]) < EXACT["fp16"]


@pytest.mark.parametrize(("name", "columns", "kernel"), [(CONV, 144, (3, 3)), (SKIP, 16, (1, 1)), (LINEAR, 144, None)])
def test_a_whole_layer_has_the_dimensions_of_its_weight(tmp_path: Path, name: str, columns: int, kernel: tuple | None):
    """LyCORIS stores LoHa of a convolution flat, and loaders pass over a difference of another shape."""
    sizes = {"w1_a": (24, 5), "w1_b": (5, columns), "w2_a": (24, 5), "w2_b": (5, columns)}
    tensors = {f"{name}.hada_{role}": torch.randn(size) for role, size in sizes.items()}
    a = write_lora(tmp_path / "a.safetensors", tensors)
    shape = read(merge(tmp_path / "out.safetensors", f"{a}:0.5"))[f"{name}.diff"].shape
    assert shape == ((24, 16, *kernel) if kernel else (24, columns))


def test_a_flat_layer_adds_up_with_one_that_is_not(tmp_path: Path):
    one, its = adapter("lora flat", LINEAR)
    two, others = adapter("lora 3x3", LINEAR, seed=1)
    a, b = save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", two)
    out = merge(tmp_path / "out.safetensors", a, b)
    assert read(out)[f"{LINEAR}.lora_down.weight"].shape == (8, 16, 3, 3)
    assert distance(effects(out)[LINEAR], its + others) < EXACT["fp16"]


def test_unknown_tensors_stay_if_there_is_no_doubt(tmp_path: Path, capsys: pytest.CaptureFixture):
    strange = {f"{LINEAR}.oft_blocks": torch.ones(2, 3), f"{LINEAR}.alpha": torch.tensor(7.0)}
    a = write_lora(tmp_path / "a.safetensors", {**layer(OTHER, 8, 2, 8), **strange})
    b = write_lora(tmp_path / "b.safetensors", {**layer(OTHER, 8, 2, 8), **strange, "emb": torch.ones(1)})
    found = read(merge(tmp_path / "out.safetensors", f"{a}:0.5", f"{b}:0.5"))
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in strange.items())
    assert found["emb"].tolist() == [1.0]
    assert f"of no kind known here, so not weighted: {LINEAR}.oft_blocks" in capsys.readouterr().err
    c = write_lora(tmp_path / "c.safetensors", {f"{LINEAR}.oft_blocks": torch.zeros(2, 3)})
    with pytest.raises(JobError, match=rf"{LINEAR}\.oft_blocks: differs between .*a.safetensors and .*c.safetensors"):
        main([str(a), str(c), "-o", str(tmp_path / "none.safetensors")])


# Mistakes.


def test_a_weight_beyond_all_measure_is_one_line(tmp_path: Path):
    for kind in ("lora", "full", "loha"):
        path = save(tmp_path / f"{kind}.safetensors", adapter(kind, LINEAR)[0], {f"{NORM}.w_norm": torch.ones(4, dtype=torch.float64) * 1e20})  # fmt: skip
        for dtype in ("fp16", "fp32"):
            with warnings.catch_warnings(), pytest.raises(JobError, match=r"inf|e\+299 does not fit"):
                warnings.simplefilter("error")
                main([f"{path}:-1e300", "--dtype", dtype, "-o", str(tmp_path / "out.safetensors")])
            assert not (tmp_path / "out.safetensors").exists()


def test_a_dora_is_refused(tmp_path: Path):
    a = write_lora(tmp_path / "a.safetensors", layer(LINEAR, 8, 2, 8))
    b = write_lora(tmp_path / "dora.safetensors", {**layer(LINEAR, 8, 2, 8), f"{LINEAR}.dora_scale": torch.ones(1, 8)})
    with pytest.raises(JobError, match=r"dora\.safetensors: .*dora_scale: .*DoRA.* not linear") as error:
        main([str(a), str(b), "-o", str(tmp_path / "out.safetensors")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (layer(LINEAR, 8, 2, 8), layer(LINEAR, 8, 2, 12), [LINEAR, "[8, 8]", "[8, 12]", "b.safetensors", "family"]),
        (layer(LINEAR, 8, 2, 8), layer(LINEAR, 8, 2, 8, 3, 3), ["[8, 8, 3, 3]"]),
        (layer(CONV, 8, 2, 8, 3, 3), layer(CONV, 8, 2, 72, 1, 1), ["[8, 8, 3, 3]", "[8, 72, 1, 1]"]),
        ({f"{NORM}.w_norm": torch.ones(4)}, {f"{NORM}.w_norm": torch.ones(5)}, [NORM, "[4]", "[5]", "family"]),
        (layer(LINEAR, 8, 2, 8), {f"{OTHER}.lora_up.weight": torch.ones(8, 2)}, ["b.safetensors", OTHER, "no whole layer"]),
        (
            layer(LINEAR, 8, 2, 8),
            {**layer(LINEAR, 8, 2, 8), **layer("lora_unet_up_blocks_0_attentions_1_proj_in", 8, 2, 8)},
            ["b.safetensors", LINEAR, "up_blocks_0", "which"],
        ),
        (layer(LINEAR, 8, 2, 8), {f"{LINEAR}.diff": torch.full((8, 8), torch.nan)}, ["b.safetensors: ", f"{LINEAR}.diff", "NaN"]),
        (layer(LINEAR, 8, 2, 8, alpha=torch.inf), layer(LINEAR, 8, 2, 8), ["a.safetensors: ", f"{LINEAR}.alpha", "infinity"]),
    ],
)  # fmt: skip
def test_what_does_not_add_up_is_one_line(tmp_path: Path, one: dict, two: dict, words: list[str]):
    a, b = write_lora(tmp_path / "a.safetensors", one), write_lora(tmp_path / "b.safetensors", two)
    with pytest.raises(JobError) as error:
        main([str(a), str(b), "-o", str(tmp_path / "out.safetensors")])
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.safetensors"], ["nothing to add"]),
        ([], ["required"]),
        (["a.safetensors:0,7", "b.safetensors"], ["0,7", "no weight"]),
        (["a.safetensors:0.7:OUT01", "b.safetensors"], ["0.7:OUT01", "no weight"]),
        (["a.safetensors:inf", "b.safetensors"], ["finite"]),
        (["a.safetensors:1:OUT01=nan", "b.safetensors"], ["finite"]),
        (["a.safetensors:1:OUT1=0.5", "b.safetensors"], ["OUT1", "did you mean"]),
        (["a.safetensors:1:OUT01=half", "b.safetensors"], ["OUT01=half", "number"]),
        (["a.safetensors", "b.safetensors", "--dtype", "fp8"], ["fp8"]),
        (["a.safetensors", "b.safetensors", "--dtpye", "fp16"], ["--dtpye"]),
        (["a.safetensors", "--dtype", "fp16", "b.safetensors", "--dtype", "bf16"], ["--dtype", "given twice"]),
        (["a.safetensors:1:OUT01=0.5,OUT01=0.2", "b.safetensors"], ["OUT01 stands twice"]),
    ],
)
def test_a_wrong_command_line_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list, words: list
):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_lora(Path(f"{name}.safetensors"), layer(LINEAR, 8, 2, 8))
    with pytest.raises(UsageError) as error:
        main([*arguments, "-o", "out.safetensors"])
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("out", ["a.safetensors", "b.safetensors", "./a.safetensors", "out.ckpt"])
def test_the_output_is_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_lora(Path(f"{name}.safetensors"), layer(LINEAR, 8, 2, 8))
    before = Path("a.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"input itself|must end in"):
        main(["a.safetensors:0.5", "b.safetensors", "-o", out])
    assert Path("a.safetensors").read_bytes() == before


def test_exit_codes_of_the_command(tmp_path: Path):
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    write_lora(tmp_path / "a.safetensors", layer(LINEAR, 8, 2, 8))
    for arguments, code in (
        (["a.safetensors", "missing.safetensors"], 1),
        (["a.safetensors", "broken.safetensors"], 1),
        (["a.safetensors"], 2),
        (["a.safetensors", "a.safetensors:0.5"], 0),
    ):
        command = [sys.executable, "-m", "lorabuild", "merge", *arguments, "-o", "out.safetensors"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert len((done.stderr + done.stdout).splitlines()) == 1


# Arguments.


@pytest.mark.parametrize(
    ("text", "path", "weight", "blocks"),
    [
        ("a.safetensors", "a.safetensors", 1.0, {}),
        ("a.safetensors:0.7", "a.safetensors", 0.7, {}),
        ("a.safetensors:-.5", "a.safetensors", -0.5, {}),
        ("a.safetensors:1e-2", "a.safetensors", 0.01, {}),
        ("a.safetensors:0.7:OUT01=0.5,TE=0", "a.safetensors", 0.7, {"OUT01": 0.5, "TE1": 0.0, "TE2": 0.0}),
        ("a.safetensors:OUT01=-2", "a.safetensors", 1.0, {"OUT01": -2.0}),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0, {}),
        (r"C:\loras\a.safetensors:0.7", r"C:\loras\a.safetensors", 0.7, {}),
        (r"C:\loras\a.safetensors:0.7:MID01=0", r"C:\loras\a.safetensors", 0.7, {"MID01": 0.0}),
        ("C:/a=b/x.safetensors:2", "C:/a=b/x.safetensors", 2.0, {}),
        ("with:colon/a.safetensors:0.3", "with:colon/a.safetensors", 0.3, {}),
    ],
)
def test_an_argument_is_read_from_the_right(text: str, path: str, weight: float, blocks: dict):
    found = parse_argument(text)
    assert (str(found.path), found.weight, dict(found.blocks)) == (path, weight, blocks)
    assert found.said is (text != path)


def test_an_existing_file_is_a_file_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:0.7", "a:0.7:OUT01=1", "odd:2.safetensors"):
        Path(name).touch()
    assert parse_argument("a:0.7").path == Path("a:0.7")
    assert parse_argument("a:0.7:0.5").weight == 0.5
    assert parse_argument("a:0.7:OUT01=1").path == Path("a:0.7:OUT01=1")
    assert parse_argument("a:0.7:0.3:OUT01=1").path == Path("a:0.7")
    assert parse_argument("odd:2.safetensors:3").path == Path("odd:2.safetensors")


# The file.


def test_metadata_tells_what_went_in(tmp_path: Path):
    folder = tmp_path / "some-folder"
    folder.mkdir()
    tags = {"10_cat": {"cat": 3, "fur": 1}, "5_x": {"x": 1}}
    a = save(folder / "a.safetensors", layer(LINEAR, 8, 2, 8, alpha=4.0), ss_output_name="style", ss_tag_frequency=json.dumps(tags),
             ss_steps="100", sshs_model_hash="stale", **{"modelspec.title": "Old"})  # fmt: skip
    b = save(folder / "b.safetensors", layer(LINEAR, 8, 2, 8, alpha=4.0), ss_tag_frequency=json.dumps({"10_cat": {"cat": 2, "dog": 1}, "odd": 3}))  # fmt: skip
    c = save(folder / "c.safetensors", layer(LINEAR, 8, 2, 8, alpha=4.0), ss_tag_frequency="{broken")
    out = merge(tmp_path / "both.safetensors", f"{a}:0.7", f"{b}:0.3:TE=0.5", c)
    header, source = read_header(out), read_header(a)
    found = header.metadata
    body = hashlib.sha256(out.read_bytes()[header.data_start :]).hexdigest()
    assert found["sshs_model_hash"] == body and found["modelspec.hash_sha256"] == f"0x{body}"
    assert found["modelspec.merged_from"] == "style, b, c"
    assert (found["ss_output_name"], found["modelspec.title"]) == ("both", "both")
    assert (found["ss_network_dim"], found["ss_network_alpha"], found["ss_steps"]) == ("Dynamic", "4.0", "100")
    assert json.loads(found["ss_tag_frequency"]) == {"10_cat": {"cat": 5, "fur": 1, "dog": 1}, "5_x": {"x": 1}}
    history = json.loads(found["lorabuild.merge"])
    assert [(one["file"], one["weight"], one["blocks"]) for one in history] == [
        ("a", 0.7, {}), ("b", 0.3, {"TE1": 0.5, "TE2": 0.5}), ("c", 1.0, {}),
    ]  # fmt: skip
    assert history[0]["sha256"] == hashlib.sha256(a.read_bytes()[source.data_start :]).hexdigest()
    assert "some-folder" not in str(found)


def test_what_is_true_of_one_file_alone_is_told_of_it_alone(tmp_path: Path):
    """Blocks that a chop left, a recipe, dimensions: none of them holds of the sum."""
    made = {
        "block_vector_string": "1,0",
        "lorabuild.chop": '{"keep": {}}',
        "lorabuild.odd": "[" * 9000,
        "lorabuild.merge": "[1]",
    }
    network = {"ss_network_dim": "8", "ss_network_args": '{"conv_dim": 8}', "ss_network_module": "lycoris.kohya"}
    a = save(tmp_path / "a.safetensors", layer(LINEAR, 8, 2, 8), **made, **network, ss_seed="7")
    b = save(tmp_path / "b.safetensors", layer(LINEAR, 8, 2, 8), ss_network_module="networks.lora", ss_seed="8")
    found = read_header(merge(tmp_path / "out.safetensors", a, b)).metadata
    assert "ss_network_args" not in found and not found.keys() & (made.keys() - {"lorabuild.merge"})
    assert (found["ss_network_dim"], found["ss_network_module"], found["ss_seed"]) == ("Dynamic", "networks.lora", "7")
    one, two = json.loads(found["lorabuild.merge"])
    assert one["metadata"] == made | {"lorabuild.chop": {"keep": {}}, "lorabuild.merge": [1]} and "metadata" not in two
    same = read_header(merge(tmp_path / "same.safetensors", a, f"{a}:0.5")).metadata
    assert same["ss_network_module"] == "lycoris.kohya"


def test_names_that_are_no_unicode_are_escaped(tmp_path: Path):
    """Of files, and of tags: JSON can spell what UTF-8 cannot."""
    a = save(tmp_path / os.fsdecode(b"x\xff.safetensors"), layer(LINEAR, 8, 2, 8), ss_tag_frequency=r'{"a": {"\udcff": 1}}',
             **{"lorabuild.x": r'["\udcff"]'})  # fmt: skip
    found = read_header(merge(tmp_path / "out.safetensors", f"{a}:0.7", a)).metadata
    assert found["modelspec.merged_from"] == r"x\udcff, x\udcff"
    assert json.loads(found["ss_tag_frequency"]) == {"a": {"\udcff": 2}}
    (one, _) = json.loads(found["lorabuild.merge"])
    assert (one["file"], one["metadata"]) == ("x\udcff", {"lorabuild.x": ["\udcff"]})


def test_tags_that_are_no_table_leave_no_trace(tmp_path: Path):
    for name, text in (("a", "[1]"), ("b", "[[" * 5000)):
        save(tmp_path / f"{name}.safetensors", layer(LINEAR, 8, 2, 8), ss_tag_frequency=text)
    out = merge(tmp_path / "out.safetensors", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert "ss_tag_frequency" not in read_header(out).metadata


def test_two_runs_give_the_same_bytes(tmp_path: Path):
    names = (LINEAR, OTHER, TEXT)
    kinds = [("lora", "loha", "lokr whole"), ("lokr", "full", "loha of full rank")]
    files = []
    for number, one in enumerate(kinds):
        parts = [adapter(kind, name, seed=number)[0] for kind, name in zip(one, names, strict=True)]
        files.append(f"{save(tmp_path / f'{number}.safetensors', *parts)}:0.{number + 3}")
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        merge(tmp_path / folder / "out.safetensors", *files)
    one, two = ((tmp_path / folder / "out.safetensors").read_bytes() for folder in ("1", "2"))
    assert one == two


def test_a_merged_file_can_be_chopped_and_merged_again(tmp_path: Path):
    names = (LINEAR, OTHER)
    a = save(
        tmp_path / "a.safetensors",
        *(adapter(kind, name)[0] for kind, name in zip(("lora", "full"), names, strict=True)),
    )
    b = save(
        tmp_path / "b.safetensors",
        *(adapter(kind, name, seed=1)[0] for kind, name in zip(("loha", "lokr"), names, strict=True)),
    )
    out = merge(tmp_path / "out.safetensors", f"{a}:0.7", f"{b}:0.3")
    chopped = tmp_path / "chopped.safetensors"
    assert chop([str(out), "--weights", "OUT01=0.5,INP04=2", "-o", str(chopped)]) == 0
    for name, weight in ((LINEAR, 0.5), (OTHER, 2.0)):
        assert distance(effects(chopped)[name], weight * effects(out)[name]) < EXACT["fp16"]
    again = merge(tmp_path / "again.safetensors", out, f"{chopped}:-1:INP04=0.5")
    assert distance(effects(again)[LINEAR], 0.5 * effects(out)[LINEAR]) < EXACT["fp16"]
    assert effects(again)[OTHER].abs().max() < EXACT["fp16"] * effects(out)[OTHER].abs().max()


def test_a_merged_file_can_be_resized_by_all_its_ranks(tmp_path: Path):
    """Factors side by side may have more ranks than the layer; a resize leaves those that it has."""
    base = save(
        tmp_path / "base.safetensors", {"model.diffusion_model.output_blocks.1.1.proj_in.weight": torch.randn(SHAPE)}
    )
    kinds = ("lora", "lora of more ranks than sides", "loha of full rank")
    files = [save(tmp_path / f"{kind}.safetensors", adapter(kind, LINEAR)[0]) for kind in kinds]
    for count in (2, 3):  # low-rank, and whole
        out = merge(tmp_path / f"out{count}.safetensors", *(f"{file}:0.5" for file in files[:count]))
        resized = tmp_path / f"resized{count}.safetensors"
        assert resize([str(out), "--base", str(base), "-r", "fro_lora=1,thr=-6", "-o", str(resized)]) == 0
        assert len(read(resized)[f"{LINEAR}.lora_down.weight"]) == 16
        assert distance(effects(resized)[LINEAR], effects(out)[LINEAR]) < EXACT["fp16"]


def test_the_summary_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    a = write_lora(tmp_path / "a.safetensors", {**layer(LINEAR, 8, 2, 8), **layer(TEXT, 8, 2, 8)})
    b = write_lora(tmp_path / "b.safetensors", {f"{LINEAR}.diff": torch.ones(8, 8)})
    merge(tmp_path / "out.safetensors", a, b)
    said = capsys.readouterr()
    assert said.out == f"{tmp_path}/out.safetensors: 2 layers of 2 files, 2 ranks, 1 whole, 1.5 kB\n"
    assert said.err == ""


def test_it_imports_no_torch(tmp_path: Path):
    a = write_lora(tmp_path / "a.safetensors", layer(LINEAR, 8, 2, 8))
    code = f"""
import sys
from lorabuild.verbs.merge import main
assert "numpy" not in sys.modules
main(["{a}", "{a}:0.5", "-o", "{tmp_path}/out.safetensors"])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
