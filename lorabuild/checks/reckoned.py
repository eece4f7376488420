"""Reckon by tables what a usual recipe makes of a base of SDXL's structure: no torch, and nothing is made.

What the tables do not know, an algorithm with factors of its own, a class of somebody else's, a base whose weights do not
fit, is tried out in a process that has torch (recipe.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from lorabuild.bases.configs import network_config
from lorabuild.bases.layout import FOLDERS
from lorabuild.bases.shapes import Shape as Sides
from lorabuild.bases.shapes import clip_shapes, unet_shapes
from lorabuild.errors import JobError
from lorabuild.header import byte_size
from lorabuild.lora.adapter_shape import Shape, trained_parts
from lorabuild.lora.keymap import lora_name
from lorabuild.lora.presets import preset_layers
from lorabuild.lora.sdxl_names import text_layers, unet_layers
from lorabuild.lora.sgm import find_weights
from lorabuild.training.optimizers import warnings
from lorabuild.writing import header_bytes

# Optimizers whose arguments the manifest knows all of, and which need no package and no GPU.
OPTIMIZERS = ("AdamW", "ClybW", "LodeW", "Lion", "SGDNesterov")
# network_args that change no tensor of a LoCon.
SHAPELESS = (
    "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "dropout", "rank_dropout", "rank_dropout_scale",
    "module_dropout", "rs_lora", "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
)  # fmt: skip
LABELS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # save_precision -> a tensor's dtype
NETWORKS = ("unet", "te1", "te2")


def reckoned(recipe: Mapping[str, Any], base: Path | None) -> dict[str, Any] | None:
    """What `checks.dry` would say of the recipe on a base, None for the built-in one; None where the tables do not know."""
    if not is_usual(recipe) or (networks := _networks(base)) is None:
        return None
    weights = {component: _adaptable(component, networks[component]) for component in NETWORKS}
    return {"adapter": _adapter(recipe, networks, weights), "faults": [], "notes": warnings(recipe)}


def is_usual(recipe: Mapping[str, Any]) -> bool:
    """Is it a LoCon, by an optimizer and a schedule that the manifest knows all of?"""
    shape = Shape.of(recipe)
    optional = {key for key, value in shape.options.items() if value not in (None, False, 0.0)}
    return (
        shape.algo == "locon"
        and optional <= set(SHAPELESS)
        and recipe.get("optimizer_type") in OPTIMIZERS
        and not recipe.get("lr_scheduler_type")
        and not recipe.get("phases")
        and recipe.get("save_precision") in LABELS
    )


def _adapter(
    recipe: Mapping[str, Any], networks: Mapping[str, Mapping[str, Sides]], weights: Mapping[str, Mapping[str, Sides]]
) -> dict[str, Any]:
    """The numbers of nn.dry.Dry. Each layer has a product up [O, R, 1, 1] @ down [R, I, *k], and an alpha."""
    shape, label = Shape.of(recipe), LABELS[recipe["save_precision"]]
    modules, parameters, tensors = {"unet": 0, "te": 0}, 0, []
    for component in trained_parts(recipe):
        for name in preset_layers(shape.preset, component):
            outputs, inputs, *kernel = weights[component][name]
            rank, _ = shape.rank(name, any(side > 1 for side in kernel))
            if not rank:
                continue
            up, down = (outputs, rank, *(1 for _ in kernel)), (rank, inputs, *kernel)
            modules["unet" if component == "unet" else "te"] += 1
            parameters += prod(up) + prod(down)
            tensors += [(f"{name}.alpha", label, ()), (f"{name}.lora_down.weight", label, down)]
            tensors.append((f"{name}.lora_up.weight", label, up))
    tensors.sort()
    return {
        "modules": modules,
        "parameters": parameters,
        "bytes": len(header_bytes(tensors, {})) + sum(byte_size(label, sides) for _, _, sides in tensors),
        "networks": {component: sum(map(prod, networks[component].values())) for component in NETWORKS},
        "width": networks["unet"]["conv_in.weight"][0],
        "whole": 0,  # no change is made whole: of low ranks both factors are used one after the other
    }


def _adaptable(component: str, shapes: Mapping[str, Sides]) -> dict[str, Sides]:
    """kohya's name -> the weight of each layer that a preset may take."""
    if component == "unet":
        paths = [one.diffusers for one in unet_layers() if one.kind == "block"]
    else:
        paths = [path.removeprefix("text_model.") for path in text_layers(int(component[-1]))]
    return {lora_name(component, path): shapes[f"{path}.weight"] for path in paths if f"{path}.weight" in shapes}


@cache
def _networks(base: Path | None) -> dict[str, dict[str, Sides]] | None:
    """component -> parameter -> shape of a base whose weights are just these; None where they are not, or are of another structure."""
    if base is None:
        from lorabuild.nn.tiny import CONFIGS

        found = {name: _shapes(name, CONFIGS[FOLDERS[name]]) for name in NETWORKS}
    else:
        found = {name: _of_file(base, name) for name in NETWORKS}
    whole = {name: shapes for name, shapes in found.items() if shapes is not None}
    return whole if len(whole) == len(NETWORKS) and _complete(whole) else None


def _complete(networks: Mapping[str, Mapping[str, Sides]]) -> bool:
    """Has each encoder as many layers as SDXL's?"""
    return all(len(_adaptable(f"te{n}", networks[f"te{n}"])) == len(text_layers(n)) for n in (1, 2))


def _shapes(component: str, config: Mapping[str, Any]) -> dict[str, Sides] | None:
    if component == "unet":
        return unet_shapes(config, [one.diffusers for one in unet_layers()])
    return clip_shapes(component, config)


def _of_file(base: Path, component: str) -> dict[str, Sides] | None:
    try:
        config, part = network_config(base, component)
        shapes = _shapes(component, config)
        if shapes is None:
            return None
        weights, left = find_weights(component, part, shapes)
    except (JobError, OSError, ValueError, KeyError):  # what is wrong is told by who tries to make it
        return None
    fits = len(weights) == len(shapes) and all(
        weights[name].shape in (own, (*own, 1, 1)) for name, own in shapes.items()
    )
    return shapes if fits and not left else None
