"""Compare two LoRA files: their metadata, and block by block how far what they add to the base is apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lorabuild.ahead import use_threads
from lorabuild.header import Header, TensorInfo
from lorabuild.lora.chopping import Blocks
from lorabuild.lora.layers import Layer, read_layers, weight_shape
from lorabuild.names import BLOCKS
from lorabuild.verbs.common import header_of

CHUNK_BYTES = 1 << 20


def diff_files(a: Path, b: Path) -> dict[str, Any]:
    """What differs, as plain data; "same" if the metadata and all bytes of the tensors are. Raises JobError."""
    sides = _Side.read(a), _Side.read(b)
    metadata = _differing(sides[0].header.metadata, sides[1].header.metadata)
    same_weights = _layout(sides[0].header) == _layout(sides[1].header) and _same_bodies(*sides)
    blocks = [] if same_weights else [row for row in _rows(*sides) if _differs(row)]
    return {"same": not metadata and same_weights, "metadata": metadata, "weights": same_weights, "blocks": blocks}


def text_of(found: Mapping[str, Any]) -> str:
    lines = [f"metadata {row['key']}: {_short(row['a'])} -> {_short(row['b'])}" for row in found["metadata"]]
    if found["blocks"]:
        heads = ("block", "tensors", "rank max", "‖A − B‖/‖A‖", "")
        rows = [heads, *(_cells(row) for row in found["blocks"])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    elif not found["weights"]:
        lines.append("weights: equal numbers in another form")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Side:
    path: Path
    header: Header
    layers: Mapping[str, Layer]  # by canonical name, so that other trainers' names are no difference
    others: Mapping[str, TensorInfo]
    block: Mapping[str, str | None]  # of a tensor

    @staticmethod
    def read(path: Path) -> _Side:
        header = header_of(path)
        layers, others = read_layers(header.tensors, header.metadata)
        named = {layer.canonical or layer.name: layer for layer in layers}
        return _Side(path, header, named, others, Blocks.read(header.tensors).of)

    def block_of(self, layer: Layer) -> str | None:
        return self.block[next(iter(layer.keys.values()))]


def _rows(a: _Side, b: _Side) -> Iterator[dict[str, Any]]:
    """A row a block that a file has: [of A, of B] each."""
    use_threads(1)
    for block in (*BLOCKS, None):
        sides = (a, b)
        tensors = [sum(one == block for one in side.block.values()) for side in sides]
        if any(tensors):
            named = [{name for name, layer in side.layers.items() if side.block_of(layer) == block} for side in sides]
            ranks = [
                max((side.layers[name].rank or 0 for name in names), default=0)
                for side, names in zip(sides, named, strict=True)
            ]
            shared = sorted(name for name in named[0] & named[1] if _fit(a.layers[name], b.layers[name]))
            yield {
                "block": block,
                "tensors": tensors,
                "rank_max": ranks,
                "layers": len(shared),
                "only": [len(names - {*shared}) for names in named],
                "others": _other_tensors(a, b, block),
                "distance": _distance(a, b, shared),
            }


def _differs(row: Mapping[str, Any]) -> bool:
    return bool(any(row["only"]) or row["others"] or row["distance"] or (row["layers"] and row["distance"] is None))


def _fit(a: Layer, b: Layer) -> bool:
    """Do both change a weight of one shape [O, J]?"""
    (rows, *rest), (other_rows, *other_rest) = weight_shape(a), weight_shape(b)
    return (rows, prod(rest)) == (other_rows, prod(other_rest))


def _distance(a: _Side, b: _Side, names: list[str]) -> float | None:
    """‖ΔW_A − ΔW_B‖ / ‖ΔW_A‖ over these layers, one at a time; None without any, or where A adds nothing and B does."""
    from lorabuild.nn.distance import difference_square
    from lorabuild.nn.factors import read_factors, scale_of

    whole, apart = [], []
    for name in names:
        one, other = a.layers[name], b.layers[name]
        factors, scale = read_factors(a.path, one), scale_of(a.path, one)
        apart.append(difference_square(factors, scale, read_factors(b.path, other), scale_of(b.path, other)))
        whole.append(max(factors.square(), 0.0) * scale**2)
    if not names:
        return None
    if not math.fsum(apart):
        return 0.0
    return math.sqrt(math.fsum(apart) / math.fsum(whole)) if math.fsum(whole) else None


def _other_tensors(a: _Side, b: _Side, block: str | None) -> int:
    """How many tensors of no layer (norms, biases, DoRA scales, unknown) differ, or are in one file only."""
    names = {name for side in (a, b) for name in side.others if side.block[name] == block}
    return sum(1 for name in names if not _same_tensor(a, b, name))


def _same_tensor(a: _Side, b: _Side, name: str) -> bool:
    one, other = a.others.get(name), b.others.get(name)
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return _same_bytes(a.path, one.start, b.path, other.start, one.stop - one.start)


# bytes


def _layout(header: Header) -> list[tuple[str, str, tuple[int, ...], int]]:
    return sorted((name, one.dtype, one.shape, one.start - header.data_start) for name, one in header.tensors.items())


def _same_bodies(a: _Side, b: _Side) -> bool:
    sizes = [side.header.size - side.header.data_start for side in (a, b)]
    starts = a.header.data_start, b.header.data_start
    return sizes[0] == sizes[1] and _same_bytes(a.path, starts[0], b.path, starts[1], sizes[0])


def _same_bytes(a: Path, a_start: int, b: Path, b_start: int, size: int) -> bool:
    with open(a, "rb") as one, open(b, "rb") as other:
        one.seek(a_start)
        other.seek(b_start)
        while size > 0:
            step = min(CHUNK_BYTES, size)
            if one.read(step) != other.read(step):
                return False
            size -= step
    return True


# what is said


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "a": a.get(key), "b": b.get(key)} for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def _short(value: str | None) -> str:
    text = "unset" if value is None else value.replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}…"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if any(row["only"]):
        notes.append(f"{row['only'][0]} layers in A only, {row['only'][1]} in B only")
    if row["others"]:
        notes.append(f"{row['others']} other tensors differ")
    distance = "-" if row["distance"] is None else f"{row['distance']:.3g}"
    pairs = (" | ".join(map(str, row[key])) for key in ("tensors", "rank_max"))
    return (row["block"] or "no block", *pairs, distance, "; ".join(notes))
