"""Tell a LoRA for SDXL from what is none: a checkpoint, an embedding, a LoRA for another family of models."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lorabuild.header import TensorInfo, short
from lorabuild.lora.canonical import block_of_module, canonical
from lorabuild.lora.keymap import PREFIX
from lorabuild.lora.layers import split_key
from lorabuild.lora.modules import LoraFile, Module, adapted_modules, is_cross_attention, lora_file, other_model
from lorabuild.names import block_of

EXPECTED = "expected names such as lora_unet_input_blocks_4_1_proj_in.lora_up.weight"
KOHYA = tuple(PREFIX.values())

# How modules of a diffusion model begin, whatever the family. Text encoders are shared by families: they tell nothing.
_DENOISER = re.compile(r"lora_unet_|lora_transformer_|lycoris_|unet\.|transformer\.|(model\.)?diffusion_model\.")


def misfit(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> str | None:
    """Why a file with this header cannot be worked on as a LoRA for SDXL; None if it can.

    One layer that SDXL has is enough, be it of a U-Net where the file has any: what is unknown beside it is passed as it
    is. A file without tensors is an empty LoRA.
    """
    return _stranger(tensors, lora_file(tensors, metadata)) or _twins(tensors)


def _stranger(tensors: Mapping[str, TensorInfo], file: LoraFile) -> str | None:
    # kohya's names are those of modules, whatever comes after the dot
    kohya = {key.partition(".")[0] for key in tensors if key.startswith(KOHYA)}
    modules = sorted({*adapted_modules(file), *kohya})
    if not modules:
        return f"not a LoRA: it has no LoRA layer, but {short(next(iter(tensors)))}; {EXPECTED}" if tensors else None
    known = {module for module in modules if _of_sdxl(module)}
    strange = [module for module in modules if module not in known]
    denoisers = [module for module in strange if _DENOISER.match(module)]
    if not known or (denoisers and not any(map(_of_unet, known))):
        first = (denoisers or strange)[0]
        key = next(key for key in tensors if key.startswith(first))
        return f"a LoRA for {other_model(file) or 'another model'}, not for SDXL: it has {short(key)}; {EXPECTED}"
    if other := other_model(LoraFile(_telling(file, known), file.metadata)):
        return f"a LoRA for {other}, not for SDXL"
    return None


def _telling(file: LoraFile, known: set[str]) -> dict[str, Module]:
    """Modules that tell families apart whose names are alike: by the width of the text, or as no block of SDXL's has them."""
    sgm = any(map(block_of, known))  # beside them a text encoder without a number is odd, but SDXL's

    def tells(name: str) -> bool:
        if name in known:
            return is_cross_attention(name) or block_of(name) is None
        return name.startswith("lora_te_") and not sgm

    return {name: one for name, one in file.modules.items() if tells(name)}


def _of_sdxl(module: str) -> bool:
    return bool(canonical(module) or block_of_module(module))


def _of_unet(module: str) -> bool:
    return (canonical(module) or module).startswith(PREFIX["unet"])


def _twins(tensors: Mapping[str, TensorInfo]) -> str | None:
    """Two tensors for one part of one layer, in different spellings: loaders would each take another."""
    first: dict[tuple[str, str], str] = {}
    for key in tensors:
        if found := split_key(key):
            module, role = found
            other = first.setdefault((canonical(module) or module, role), key)
            if other != key:
                return f"{short(other)} and {short(key)} are one and the same part of a layer: which of them counts?"
    return None
