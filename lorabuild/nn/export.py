"""Write an adapter as the world reads it: kohya's names, one alpha for the whole file, one dtype, name order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lorabuild.errors import JobError
from lorabuild.nn.adapter import Adapter
from lorabuild.nn.adapters.files import file_tensors
from lorabuild.writing import write_body

# recipe.save_precision -> (dtype, the file format's name for it)
PRECISIONS = {"fp16": (torch.float16, "F16"), "bf16": (torch.bfloat16, "BF16"), "fp32": (torch.float32, "F32")}


def write_adapter(path: Path, adapter: Adapter, network_alpha: float, save_precision: str) -> None:
    """Write `adapter` to `path` as a canonical body: each module's tensors by LyCORIS' names, and its alpha.

    The file's one alpha is `network_alpha`, or what is nearest to it in the dtype: diffusers loses alphas that differ.
    Raises JobError, with the tensor's name, where the dtype cannot hold a weight.
    """
    dtype, label = PRECISIONS[save_precision]
    alpha = one_alpha(network_alpha, dtype)
    tensors = dict(_tensors(adapter, alpha))
    write_body(path, [(name, label, tuple(t.shape), _bytes(name, t, dtype)) for name, t in tensors.items()])


def one_alpha(network_alpha: float, dtype: torch.dtype) -> float:
    """The number nearest to `network_alpha` that `dtype` represents; 1 if that is zero or infinite."""
    alpha = torch.tensor(network_alpha, dtype=torch.float64).to(dtype).item()
    return alpha if 0 < alpha < float("inf") else 1.0


def _tensors(adapter: Adapter, alpha: float) -> Iterator[tuple[str, Tensor]]:
    for module in adapter.modules.values():
        yield from file_tensors(module, alpha)


def _bytes(name: str, tensor: Tensor, dtype: torch.dtype) -> bytes:
    rounded = tensor.to("cpu", dtype).contiguous()
    if not torch.isfinite(rounded).all():
        raise JobError(f"{name}: a weight of {tensor.abs().max():g} does not fit {str(dtype).removeprefix('torch.')}")
    return rounded.reshape(-1).view(torch.uint8).numpy().tobytes()
