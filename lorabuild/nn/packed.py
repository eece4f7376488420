"""A base in one small file: matrices as int8 with a scale a row, vectors as fp16; and the folder that is made of it."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from lorabuild.errors import JobError
from lorabuild.header import Header, TensorInfo, read_header
from lorabuild.nn.base_folder import Config, write_base
from lorabuild.writing import Tensor, write_file

LARGEST = 127
FORMAT = "lorabuild-packed-base-1"


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 of the same shape, float16 scales [rows]) of a float weight [rows, ...].

    A number is off by at most half its row's scale: scales are rounded up to fp16, so that none is cut off at 127.
    Raises ValueError where a row's scale is beyond fp16, or a number not finite.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    wanted = np.abs(rows).max(axis=1, initial=0) / LARGEST
    if not np.isfinite(wanted).all() or wanted.max(initial=0) > np.finfo(np.float16).max:
        raise ValueError("holds numbers that int8 rows with fp16 scales cannot")
    scales = wanted.astype(np.float16)
    low = scales < wanted
    scales[low] = np.nextafter(scales[low], np.float16(np.inf))
    steps = rows / np.where(scales == 0, 1, scales)[:, None].astype(np.float64)
    return np.rint(steps).astype(np.int8).reshape(weight.shape), scales


def dequantised(steps: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32: each number one product, rounded once, so that all processors agree."""
    return steps.astype(np.float32) * scales.astype(np.float32).reshape(-1, *[1] * (steps.ndim - 1))


def pack(
    path: Path, configs: Mapping[str, Config], weights: Mapping[str, Mapping[str, np.ndarray]], card: Mapping[str, str]
) -> None:
    """Write the file. `weights`: component -> name -> array, by the names that SDXL's files have; `card`: what is told.

    A component has two tensors, `.int8` and `.fp16`, each all of its kind in name order; the latter are a matrix' scales
    or a vector. Names and shapes stand in the metadata, deflated: as tensors of their own they would take half a megabyte.
    Raises ValueError as `quantised` does, naming the weight.
    """
    tensors: list[Tensor] = []
    for component, part in weights.items():
        steps, halves = zip(*(_packed(component, name, part[name]) for name in sorted(part)), strict=True)
        for kind, dtype, arrays in (("int8", "I8", steps), ("fp16", "F16", halves)):
            flat = np.concatenate([one.ravel() for one in arrays])
            tensors.append((f"{component}.{kind}", dtype, flat.shape, flat.tobytes()))
    shapes = {component: {name: one.shape for name, one in part.items()} for component, part in weights.items()}
    said = {"format": FORMAT, "configs": json.dumps(configs, sort_keys=True), "shapes": _deflated(shapes)}
    write_file(path, tensors, {**card, **said})


def _packed(component: str, name: str, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if weight.ndim < 2:
        return np.empty(0, np.int8), weight.astype("<f2")
    try:
        return quantised(weight)
    except ValueError as error:
        raise ValueError(f"{component}/{name}: {error}") from None


def _deflated(value: object) -> str:
    return b64encode(zlib.compress(json.dumps(value, sort_keys=True).encode(), 9)).decode()


def write_packed(path: Path, folder: Path) -> None:
    """Write the base of the packed file `path` into `folder`, as diffusers has it: equal bytes on every machine.

    Raises JobError for a file that is no packed base.
    """
    header = read_header(path)
    if header.metadata.get("format") != FORMAT:
        raise JobError(f"{path}: not a packed base: its metadata has no format {FORMAT}")
    configs: dict[str, Config] = json.loads(header.metadata["configs"])
    shapes: dict[str, dict[str, list[int]]] = json.loads(zlib.decompress(b64decode(header.metadata["shapes"])))
    write_base(folder, configs, lambda component, config: _unpacked(path, header, component, shapes[component]))


def _unpacked(path: Path, header: Header, component: str, shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    steps = _read(path, header.tensors[f"{component}.int8"], "i1")
    halves = _read(path, header.tensors[f"{component}.fp16"], "<f2")
    found, step, half = {}, 0, 0
    for name, shape in sorted(shapes.items()):
        if len(shape) < 2:
            count = prod(shape)
            found[name] = halves[half : half + count].astype(np.float32).reshape(shape)
        else:
            count = shape[0]
            matrix = steps[step : step + prod(shape)].reshape(shape)
            found[name] = dequantised(matrix, halves[half : half + count])
            step += prod(shape)
        half += count
    return found


def _read(path: Path, info: TensorInfo, dtype: str) -> np.ndarray:
    with open(path, "rb") as file:
        file.seek(info.start)
        return np.frombuffer(file.read(info.stop - info.start), dtype)
