"""Lay out a recipe's adapter without making it: layers, parameters, and bytes of a file; no torch, in milliseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from lorabuild.errors import JobError
from lorabuild.header import byte_size
from lorabuild.lora.adapter_shape import Shape, trained_parts
from lorabuild.lora.adapter_tensors import WITHOUT_ALPHA, Layout, layout, norm_layout
from lorabuild.lora.presets import preset_layers, preset_norms
from lorabuild.lora.sdxl_widths import has_bias, norm_width, weight_shapes

DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
ENTRY_BYTES = 120  # of a tensor in a header, about


@dataclass(frozen=True)
class Dry:
    """What an adapter would be: modules and trained parameters of each part ("unet", "te"), and bytes of a file, about."""

    counts: dict[str, int]
    parameters: dict[str, int]
    file_bytes: int


def dry(recipe: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> Dry:
    """The adapter of a recipe on a base whose weights have these shapes, by kohya's names; on SDXL without them.

    Raises JobError as the start of a training does: for a base without one of the layers, for a layer that the algorithm
    cannot take apart, and where nothing would be trained.
    """
    counts, parameters, file_bytes = Counter(unet=0, te=0), Counter(unet=0, te=0), 0
    dtype = DTYPES[recipe["save_precision"]]
    for part, algo, found in _layouts(recipe, dict(weight_shapes() if shapes is None else shapes)):
        sizes = {name: prod(start.shape) for name, start in found.items()}
        counts[part] += 1
        parameters[part] += sum(sizes.values())
        scalars = (algo not in WITHOUT_ALPHA) - ("scalar" in found)
        tensors = (2 if algo == "dylora" else len(found)) + scalars
        file_bytes += byte_size(dtype, (sum(sizes.values()) + scalars,)) + tensors * ENTRY_BYTES
    if not sum(counts.values()):
        raise JobError("the adapter has no layer to train: see network_args and the learning rates")
    return Dry(dict(counts), dict(parameters), file_bytes)


def _layouts(recipe: Mapping[str, Any], shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, str, Layout]]:
    """(part, algorithm, tensors) of each layer."""
    shape = Shape.of(recipe)
    for component in trained_parts(recipe):
        part = "unet" if component == "unet" else "te"
        for name in sorted(preset_layers(shape.preset, component)):
            if name not in shapes:
                raise JobError(f"{name}: the base has no such layer: it is not SDXL")
            dim, _ = shape.rank(name, any(side > 1 for side in shapes[name][2:]))
            if dim:
                try:
                    yield (
                        part,
                        shape.algo,
                        layout(shape.algo, shapes[name], dim, {**shape.options, "bias": has_bias(name)}),
                    )
                except ValueError as error:
                    raise JobError(f"recipe.network_args: {name}: {error}") from None
        if part == "unet" and shape.options.get("train_norm"):
            for name in sorted(preset_norms(shape.preset)):
                if shape.rank(name, False)[0]:
                    yield part, "full", norm_layout(norm_width(name, shapes))
