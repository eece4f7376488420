"""Put an adapter on a base's architecture without its weights: what it would be like, or why it cannot be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lorabuild.bases.layout import FOLDERS
from lorabuild.header import byte_size
from lorabuild.lora.adapter_shape import Shape, trained_parts
from lorabuild.nn.adapter import adapted
from lorabuild.nn.adapters.files import file_tensors
from lorabuild.nn.base import Base
from lorabuild.nn.export import PRECISIONS
from lorabuild.nn.networks import architecture, meta_network
from lorabuild.nn.tiny import CONFIGS
from lorabuild.writing import header_bytes

NETWORKS = ("unet", "te1", "te2")


@dataclass(frozen=True)
class Dry:
    """An adapter in numbers: modules by part, trained parameters, and the bytes of a file without its metadata.

    And what memory hangs on: `networks`, the base's parameters by component, `width` of the U-Net's first level, and
    `whole`, the numbers of those of its layers whose change is made whole at each step.
    """

    modules: dict[str, int]
    parameters: int
    bytes: int
    networks: dict[str, int]
    width: int
    whole: int


def dry(recipe: Mapping[str, Any], base: Path | None) -> Dry:
    """The adapter that a recipe makes on the file or folder `base`; None is the built-in base. Raises JobError."""
    networks, shape = meta_base(base), Shape.of(recipe)
    label = PRECISIONS[recipe["save_precision"]][1]
    with adapted(networks, shape, recipe["seed"], trained_parts(recipe), "meta") as adapter:
        modules, numbers = adapter.counts(), sum(p.numel() for p in adapter.parameters().values())
        files = (pair for module in adapter.modules.values() for pair in file_tensors(module, shape.alpha))
        tensors = [(name, label, tuple(tensor.shape)) for name, tensor in files]
        whole = sum(module.weight.numel() for module in adapter.modules.values() if module.makes_whole)
    sizes = {name: sum(p.numel() for p in getattr(networks, name).parameters()) for name in NETWORKS}
    size = len(header_bytes(tensors, {})) + sum(byte_size(label, shape) for _, _, shape in tensors)
    return Dry(modules, numbers, size, sizes, networks.unet.config.block_out_channels[0], whole)


@cache
def meta_base(base: Path | None) -> Base:
    """A base whose tensors have shapes and no numbers: nothing but headers and config.json files is read. Raises JobError,
    also for weights that are missing or left over.

    It takes a second and no memory, so that it is kept for the next recipe.
    """
    if base is None:
        unet, te1, te2 = (architecture(name, CONFIGS[FOLDERS[name]], "tiny") for name in NETWORKS)
    else:
        unet, te1, te2 = (meta_network(base, name)[0] for name in NETWORKS)
    return Base(unet, te1, te2, None, None)
