"""Write a LoRA as diffusers saves one: PEFT's names, up and down alone, and every scale 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError, in_file
from lorabuild.header import Header
from lorabuild.lora.adapter_metadata import COMPONENTS, KEY
from lorabuild.lora.amend import amended, remade
from lorabuild.lora.canonical import TEXT_PROJECTION, canonical
from lorabuild.lora.layers import LINEAR, module_of, read_layers, split_key
from lorabuild.lora.lowrank import LowRank
from lorabuild.lora.merge import MergedLayer, Source, plan_merge
from lorabuild.lora.sdxl_names import TEXT_LAYERS, text_layers, unet_layers
from lorabuild.tensors import FLOATS
from lorabuild.verbs.common import NewFile

FILE_NAME = "pytorch_lora_weights.safetensors"  # what diffusers looks for in a folder
ENCODERS = {1: "text_encoder", 2: "text_encoder_2"}
SHOWN = 3  # names in a message

# Why a tensor that is no part of a pair cannot go along, by its role.
NO_PLACE = {
    "dora_scale": "a DoRA, whose magnitudes depend on the base",
    **dict.fromkeys(LINEAR, "differences of norms or biases"),
}


def peft_file(path: Path, header: Header, out: Path, name: str) -> NewFile:
    """The LoRA at `path` as it is to be written at `out`, named `name` in its metadata.

    What a layer adds stays the same: alpha / R goes into lora_B, rounded once to the file's own dtype (exact where it is a
    power of two), LoHa and LoKr become a product of exactly their rank. Raises JobError, in one line, for what diffusers
    has no place for: whole differences, DoRA, norms, biases, layers that SDXL does not have.
    """
    from lorabuild.nn.factors import scale_of
    from lorabuild.nn.merge import layer_tensors

    with in_file(path):
        _refuse_others(header)
        plan = plan_merge([Source(path, header.tensors, metadata=header.metadata)], scale_of)
        layers = [_renamed(layer) for layer in plan.layers]
        if not layers:
            raise JobError("adds nothing: there is nothing to export")
    dtype = _dtype(header)
    tensors = [one for layer in layers for one in layer_tensors(layer, 1.0, dtype, lambda name: None)]
    config = adapter_config({layer.names.name: layer.rank or 0 for layer in layers})
    facts = {"format": "pt", KEY: config}
    return NewFile(out, tensors, amended(remade(header.metadata), name, facts))


def peft_name(module: str) -> str | None:
    """Where diffusers has the layer that a file calls `module`: `unet.down_blocks.1.attentions.0.proj_in`; None if nowhere."""
    return _places().get(canonical(module) or "")


def adapter_config(ranks: Mapping[str, int]) -> dict[str, Any]:
    """PEFT's LoraConfig of each component, as diffusers packs it: alpha is the rank, layer by layer.

    `ranks` by diffusers' path with the component in front. Without it diffusers before 0.42 gave all layers of a component
    the alpha of the most common rank. Patterns are the ends of names: those of text encoders leave out `text_model`, which
    not every release of transformers has.
    """
    found: dict[str, Any] = {}
    for component in COMPONENTS:
        own = {
            path.removeprefix(f"{component}.").removeprefix("text_model."): rank
            for path, rank in ranks.items()
            if path.startswith(f"{component}.")
        }
        if not own:
            continue
        usual = Counter(own.values()).most_common(1)[0][0]
        others = {path: rank for path, rank in own.items() if rank != usual}
        config = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others}
        found |= {f"{component}.{key}": value for key, value in (config | {"target_modules": sorted(own)}).items()}
    return found


@cache
def _places() -> dict[str, str]:
    """kohya's name -> diffusers' path, of every layer that may have a LoRA."""
    unet = {one.sgm: one.diffusers for one in unet_layers() if one.kind != "norm"}
    return (
        {f"lora_unet_{sgm.replace('.', '_')}": f"unet.{path}" for sgm, path in unet.items()}
        | {
            f"lora_te{number}_{path.replace('.', '_')}": f"{ENCODERS[number]}.{path}"
            for number in TEXT_LAYERS
            for path in text_layers(number)
        }
        | {TEXT_PROJECTION: "text_encoder_2.text_projection"}
    )


def _refuse_others(header: Header) -> None:
    """Raise JobError for tensors that are no part of a pair, and for layers that have no place."""
    layers, rest = read_layers(header.tensors, header.metadata)
    whole = {layer.name for layer in layers}
    for key in rest:
        module, role = split_key(key) or ("", "")
        if role == "alpha" and module not in whole:
            continue  # of nothing: it does nothing
        said = NO_PLACE.get(role, "of no kind known here" if not role else "part of no whole layer")
        alike = [one for one in rest if (split_key(one) or ("", ""))[1] == role]
        raise JobError(f"diffusers has no place for {_some(alike)}: {said}")
    if strange := [layer.name for layer in layers if peft_name(layer.name) is None]:
        raise JobError(f"diffusers has no such layer in SDXL: {_some(strange)}")


def _renamed(layer: MergedLayer) -> MergedLayer:
    """With PEFT's names, in the shape that diffusers' own layer has. Raises JobError for a change that is not low-rank."""
    name = layer.names.name
    if layer.rank is None:
        raise JobError(
            f"{module_of(name)}: is no product of low rank, which is all that diffusers takes: resize it first"
        )
    path = peft_name(name) or name
    shape = layer.names.shape
    if not _is_convolution(path) and set(shape[2:]) == {1}:
        shape = shape[:2]  # some trainers take a linear layer for a convolution of 1 x 1
    return replace(layer, names=LowRank(path, f"{path}.lora_B.weight", f"{path}.lora_A.weight", None, shape))


def _is_convolution(path: str) -> bool:
    """SDXL's are the resamplers, two a ResNet and its shortcut, and the first and the last layer."""
    last = path.rpartition(".")[2]
    return last.startswith("conv")


def _dtype(header: Header) -> str:
    """That which most tensors have; fp16 where none is plain numbers."""
    counts = Counter(info.dtype for info in header.tensors.values() if info.dtype in FLOATS and info.shape)
    return counts.most_common(1)[0][0] if counts else "F16"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
