"""Pictures drawn once, for all epochs: a file of pixels, read in parts."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toy.draw.render import SIZE, render
from toy.pictures import picture
from toy.traits import Picture

CHUNK = 500


def pixels_of(picture: Picture) -> np.ndarray:
    """uint8 [3, side, side]."""
    return np.asarray(render(picture)).transpose(2, 0, 1)


def drawn(folder: Path, seed: int, count: int, processes: int) -> np.ndarray:
    """Pixels [count, 3, side, side], uint8, of the pictures that are for training; drawn unless `folder` has them."""
    path = folder / f"pictures-{seed}-{count}.npy"
    if not path.exists():
        part = path.with_suffix(".part")
        pixels = np.lib.format.open_memmap(part, "w+", np.uint8, (count, 3, SIZE, SIZE))
        starts = range(0, count, CHUNK)
        with ProcessPoolExecutor(processes) as pool:
            for start, chunk in zip(starts, pool.map(partial(_chunk, seed, count), starts), strict=True):
                pixels[start : start + len(chunk)] = chunk
        pixels.flush()
        os.replace(part, path)
    return np.load(path, mmap_mode="r")


def _chunk(seed: int, count: int, start: int) -> np.ndarray:
    return np.stack([pixels_of(picture(seed, "train", index)) for index in range(start, min(start + CHUNK, count))])


def as_input(pixels: np.ndarray) -> Tensor:
    """uint8 -> float32 in -1 … 1: a copy, as files are mapped for reading only."""
    return torch.from_numpy(np.array(pixels)).float() / 127.5 - 1


def validation(seed: int, count: int) -> list[Picture]:
    """Pictures of a stream of their own."""
    return [picture(seed, "validate", index) for index in range(count)]
