"""Put an adapter on a base's architecture without its weights: what it would be like, or why it cannot be made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lorabuild.components import FOLDERS
from lorabuild.errors import JobError
from lorabuild.header import byte_size
from lorabuild.lora.adapter_shape import Shape, trained_parts
from lorabuild.nn.adapter import adapted
from lorabuild.nn.adapters.files import file_tensors
from lorabuild.nn.base import Base
from lorabuild.nn.export import PRECISIONS
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


def dry(recipe: Mapping[str, Any], folder: Path | None) -> Dry:
    """The adapter that a recipe makes on the base in `folder`; None is the built-in base. Raises JobError."""
    base, shape = meta_base(folder), Shape.of(recipe)
    label = PRECISIONS[recipe["save_precision"]][1]
    with adapted(base, shape, recipe["seed"], trained_parts(recipe), "meta") as adapter:
        modules, numbers = adapter.counts(), sum(p.numel() for p in adapter.parameters().values())
        files = (pair for module in adapter.modules.values() for pair in file_tensors(module, shape.alpha))
        tensors = [(name, label, tuple(tensor.shape)) for name, tensor in files]
        whole = sum(module.weight.numel() for module in adapter.modules.values() if module.makes_whole)
    networks = {name: sum(p.numel() for p in getattr(base, name).parameters()) for name in NETWORKS}
    size = len(header_bytes(tensors, {})) + sum(byte_size(label, shape) for _, _, shape in tensors)
    return Dry(modules, numbers, size, networks, base.unet.config.block_out_channels[0], whole)


@cache
def meta_base(folder: Path | None) -> Base:
    """A base whose tensors have shapes and no numbers: nothing but its config.json files is read. Raises JobError.

    It takes a second and no memory, so that it is kept for the next recipe.
    """
    configs = {name: _config(folder, name) for name in NETWORKS}
    with torch.device("meta"):
        unet, te1, te2 = (_network(name, config) for name, config in configs.items())
    return Base(unet, te1, te2, None, None)


def _config(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None:
        return CONFIGS[FOLDERS[name]]
    path = folder / FOLDERS[name] / "config.json"
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: {getattr(error, 'strerror', None) or 'not JSON'}") from None


def _network(name: str, config: Mapping[str, Any]) -> Any:
    try:
        if name == "unet":
            from diffusers import UNet2DConditionModel

            return UNet2DConditionModel.from_config(dict(config)).requires_grad_(False)
        import transformers

        architecture = "CLIPTextModel" if name == "te1" else "CLIPTextModelWithProjection"
        return getattr(transformers, architecture)(transformers.CLIPTextConfig(**config)).requires_grad_(False)
    except Exception as error:  # the libraries' own, of many kinds
        raise JobError(f"{name}: its config.json makes no network: {' '.join(str(error).split())[:200]}") from None
