"""Read the packed latents of a data set: mapped into memory, and on a GPU kept there where they fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FREE_SHARE = 0.1  # of a GPU's free memory: the rest is for activations, gradients and the optimizer


def open_latents(path: Path, device: str = "cpu", room_bytes: int | None = None) -> Callable[[str], Tensor]:
    """What gives the tensor of a name in the file `path`.

    On a CPU it is a view of the mapped file. On another device it is copied there when it is first asked for and stays,
    if the whole file fits into `room_bytes`, by default a tenth of the memory that is free now; else each is copied by
    who uses it.
    """
    from safetensors import safe_open

    mapped = safe_open(path, framework="pt").get_tensor
    if device == "cpu":
        return mapped
    if room_bytes is None:
        room_bytes = int(torch.cuda.mem_get_info(device)[0] * FREE_SHARE)
    if path.stat().st_size > room_bytes:
        return mapped
    return cache(lambda name: mapped(name).to(device))
