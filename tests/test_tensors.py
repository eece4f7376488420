"""Numbers come in and go out as torch has them, bit for bit; what does not fit is an error with the tensor's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lora_lab import write_lora

from lorabuild.errors import JobError
from lorabuild.header import TensorInfo, read_header
from lorabuild.tensors import nearest, read_tensor, rounded
from lorabuild.writing import write_body

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def of_torch(array: np.ndarray, dtype: str) -> bytes:
    return torch.from_numpy(array).to(DTYPES[dtype]).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_is_read_as_it_is(tmp_path: Path, dtype: torch.dtype):
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()].reshape(-1, 8)
    path = write_lora(tmp_path / "a", {"before": torch.zeros(3), "x": every, "y": torch.zeros(5)}, dtype)
    found = read_tensor(path, "x", read_header(path).tensors["x"])
    assert found.dtype == np.float32
    assert found.tobytes() == every.float().numpy().tobytes()


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_rounding_is_torchs_bit_for_bit(dtype: str):
    random = np.random.default_rng(0).integers(0, 2**32, 500_000, np.uint32).view(np.float32)
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    exact = torch.cat([halves.view(torch.float16).float(), halves.view(torch.bfloat16).float()]).numpy()
    ties = (
        exact.view(np.uint32) | np.array([[0x1000], [0x0FFF], [0x1001], [0x8000], [0x7FFF], [0x8001]], np.uint32)
    ).ravel()
    numbers = np.concatenate([random, exact, ties.view(np.float32)])
    largest = {"F16": 65519.99, "BF16": 3.3895313e38, "F32": np.inf}[dtype]
    numbers = numbers[np.abs(numbers) < largest]
    assert rounded(numbers, dtype, "x").tobytes() == of_torch(numbers, dtype)


def test_the_shape_stays_also_of_a_scalar_and_of_a_transposed_array():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert rounded(array.T, "F16", "x").tobytes() == of_torch(np.ascontiguousarray(array.T), "F16")
    assert rounded(array.T, "BF16", "x").shape == (3, 2)
    assert rounded(np.float32(4), "BF16", "x").shape == ()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(65520.0, "F16"), (-1e30, "F16"), (3.4e38, "BF16"), (np.inf, "F32"), (np.nan, "F16"), (-np.nan, "BF16")],
)
def test_what_does_not_fit_is_an_error_that_names_the_tensor(value: float, dtype: str):
    array = np.array([[1.0, 2.0], [value, 3.0]], np.float32)
    with pytest.raises(JobError, match=rf"lora_x\.lora_up\.weight: .* does not fit {dtype}"):
        rounded(array, dtype, "lora_x.lora_up.weight")


def test_the_largest_number_fits():
    assert rounded(np.array([65519.9, -65504], np.float32), "F16", "x").tolist() == [65504, -65504]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_are_named(tmp_path: Path, value: float):
    path = write_lora(tmp_path / "a", {"x.alpha": torch.tensor([1.0, value])})
    with pytest.raises(JobError, match=r"x\.alpha: holds NaN or infinity"):
        read_tensor(path, "x.alpha", read_header(path).tensors["x.alpha"])


def test_other_dtypes_and_files_that_end_early_are_named(tmp_path: Path):
    write_body(tmp_path / "a", [("ids", "I64", [1], bytes(8))])
    with pytest.raises(JobError, match="ids: has dtype I64; one of F16, BF16, F32, F64 was expected"):
        read_tensor(tmp_path / "a", "ids", read_header(tmp_path / "a").tensors["ids"])
    with pytest.raises(JobError, match="truncated while x was being read"):
        read_tensor(tmp_path / "a", "x", TensorInfo("F32", (100,), 8, 408))


def test_nearest():
    assert nearest(4.0, "F16") == nearest(4.0, "BF16") == nearest(4.0, "F32") == 4.0
    assert nearest(0.3, "F16") == torch.tensor(0.3).half().item()
    assert nearest(0.3, "BF16") == torch.tensor(0.3).bfloat16().item()
    assert nearest(1e-9, "F16") == 0
    assert nearest(1e9, "F16") == float("inf")
