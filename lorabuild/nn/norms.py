"""Measure the weights of a base: the Frobenius norm of each adaptable module, read by byte ranges in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from lorabuild.errors import JobError
from lorabuild.header import FormatError, TensorInfo, read_header
from lorabuild.nn.keymap import EXPECTED, adaptable_modules

CHUNK = 1 << 18  # elements at a time; with their float32 and float64 copies they stay in the cache of one core
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def frobenius_norms(path: Path, component: str) -> Iterator[tuple[str, float]]:
    """(kohya's module name, ‖W‖_F) of every module of `component` ("unet", "te1", "te2") that can have an adapter.

    `path` is the component's weight file in diffusers' layout. Modules come in file order; reading is sequential.
    Raises JobError unless the file has exactly as many of them as SDXL, and for a weight that is not finite.
    """
    tensors = read_header(path).tensors
    weights = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    modules = adaptable_modules(component, weights)
    if len(modules) != EXPECTED[component]:
        raise JobError(f"{path}: has {len(modules)} adaptable modules, SDXL's {component} has {EXPECTED[component]}")
    with open(path, "rb", buffering=0) as file:
        for name, module in modules.items():
            yield name, _norm(file, path, f"{module}.weight", tensors[f"{module}.weight"])


def _norm(file: BinaryIO, path: Path, name: str, info: TensorInfo) -> float:
    """√Σw², every product and sum in float64: torch's own float32 norm is up to 0.2 % too small for large layers."""
    if info.dtype not in DTYPES:
        raise JobError(f"{path}: {name} has dtype {info.dtype}; one of {', '.join(DTYPES)} was expected")
    dtype = DTYPES[info.dtype]
    raw = bytearray(CHUNK * dtype.itemsize)
    single, double = torch.empty(CHUNK), torch.empty(CHUNK, dtype=torch.float64)
    file.seek(info.start)
    total, rest = 0.0, info.stop - info.start
    while rest:
        count = file.readinto(memoryview(raw)[: min(len(raw), rest)])
        if not count or count % dtype.itemsize:  # a regular file gives less than was asked for only at its end
            raise FormatError(f"{path}: truncated while {name} was being read")
        chunk = torch.frombuffer(raw, dtype=dtype, count=count // dtype.itemsize)
        exact = double[: len(chunk)]
        # By way of float32: the direct conversion from half to double is not vectorised.
        exact.copy_(chunk if dtype == torch.float64 else single[: len(chunk)].copy_(chunk))
        total += exact.dot(exact).item()
        rest -= count
    if not math.isfinite(total):
        raise JobError(f"{path}: {name} holds NaN or infinity; the base is broken")
    return math.sqrt(total)
