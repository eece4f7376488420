"""The packed base: one small file, from which the same folder is made everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_base import tiny_folder

from lorabuild.components import FOLDERS
from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.lora.keymap import EXPECTED, adaptable_modules
from lorabuild.nn.packed import dequantised, pack, quantised, write_packed
from lorabuild.nn.tiny import CONFIGS, fixed_weight
from lorabuild.stages.base import FILES
from lorabuild.writing import write_body


def weights() -> dict[str, dict[str, np.ndarray]]:
    """component -> name -> array, of the random base."""
    found = {}
    for component in CONFIGS:
        header = read_header(next((tiny_folder() / component).glob("*.safetensors")))
        found[component] = {name: fixed_weight(component, name, info.shape) for name, info in header.tensors.items()}
    return found


@pytest.fixture(scope="module")
def asset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("asset") / "base.safetensors"
    pack(path, CONFIGS, weights(), {"licence": "MIT"})
    return path


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1.0, 3e5])
def test_a_number_is_off_by_half_a_scale_at_most(size: float):
    weight = np.random.default_rng(1).normal(size=(40, 3, 5)).astype(np.float32) * np.float32(size)
    weight[7] = 0
    steps, scales = quantised(weight)
    error = np.abs(dequantised(steps, scales).astype(np.float64) - weight)
    assert (steps.dtype, scales.dtype) == (np.int8, np.float16)
    assert (error.reshape(40, -1).max(1) <= scales.astype(np.float64) / 2 * (1 + 1e-5)).all()
    largest = np.abs(weight).reshape(40, -1).max(1)
    assert (scales <= largest / 127 * (1 + 2**-9) + 2**-24).all(), "no scale is larger than it need be"


def test_the_extremes_of_a_row_come_back():
    weight = np.array([[0.3, -0.3, 0.1], [0, 0, 0]], np.float32)
    steps, scales = quantised(weight)
    assert steps.tolist()[1] == [0, 0, 0] and scales[1] == 0
    assert steps[0, 0] == -steps[0, 1] == 127
    assert np.abs(dequantised(steps, scales) - weight).max() < 0.0012


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e8])
def test_what_cannot_be_packed_is_named(number: float, tmp_path: Path):
    with pytest.raises(ValueError, match="unet/a: holds numbers that int8 rows"):
        pack(tmp_path / "x", {}, {"unet": {"a": np.full((1, 2), number, np.float32)}}, {})


def test_the_folder_is_complete_and_the_same_each_time(asset: Path, tmp_path: Path):
    for name in ("one", "two"):
        write_packed(asset, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    found = {str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert found == set(FILES)
    for component, count in EXPECTED.items():
        names = read_header(next((tmp_path / "one" / FOLDERS[component]).glob("*.safetensors"))).tensors
        layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
        assert len(adaptable_modules(component, layers)) == count


def test_the_packed_base_is_near_the_one_that_was_packed(asset: Path, tmp_path: Path):
    from lorabuild.nn.base import load_unet

    write_packed(asset, tmp_path)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    answers = []
    for folder in (tmp_path, tiny_folder()):
        unet = load_unet(folder, torch.float32)
        conditions = {
            "text_embeds": torch.ones(1, CONFIGS["text_encoder_2"]["hidden_size"]),
            "time_ids": torch.full((1, 6), 64.0),
        }
        hidden = torch.ones(1, 77, CONFIGS["unet"]["cross_attention_dim"])
        with torch.no_grad():
            answers.append(unet(noise, torch.tensor([500]), hidden, added_cond_kwargs=conditions).sample)
    assert 0 < (answers[0] - answers[1]).std() < 0.05 * answers[1].std()


def test_a_packed_base_says_what_it_is(asset: Path, tmp_path: Path):
    assert read_header(asset).metadata["licence"] == "MIT"
    assert asset.stat().st_size < 9.5e6, "a byte a number, and a little"
    other = tmp_path / "other.safetensors"
    write_body(other, [("a", "F32", (1,), bytes(4))])
    with pytest.raises(JobError, match=r"other\.safetensors: not a packed base"):
        write_packed(other, tmp_path / "folder")
