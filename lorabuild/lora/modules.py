"""Read a LoRA file for SDXL as loaders do: by modules, suffixes and kinds of adapters. Of tensors, only alphas are read.

Facts about names only: what a program makes of them is told in loaders.py.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorabuild.header import TensorInfo
from lorabuild.lora.layers import split_key

Module = Mapping[str, TensorInfo]  # suffix -> tensor


@dataclass(frozen=True)
class Kind:
    """A kind of adapter by its suffixes: a module that has one of `signs` is of this kind and must have `needs`."""

    signs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (*self.signs, *self.needs, *self.may)

    def fits(self, module: Module) -> bool:
        return not module.keys().isdisjoint(self.signs)

    def whole(self, module: Module) -> bool:
        return self.fits(module) and all(suffix in module for suffix in self.needs)


KINDS = {
    "LoRA": Kind((".lora_up.weight",), (".lora_down.weight",)),
    "LoRA with Tucker mid": Kind((".lora_up.weight",), (".lora_down.weight",), (".lora_mid.weight",)),
    "PEFT": Kind((".lora_B.weight",), (".lora_A.weight",)),
    "diffusers": Kind((".lora.up.weight",), (".lora.down.weight",)),
    "diffusers processor": Kind(("_lora.up.weight",), ("_lora.down.weight",)),
    "diffusers text": Kind((".lora_linear_layer.up.weight",), (".lora_linear_layer.down.weight",)),
    "LoHa": Kind((".hada_w1_a",), (".hada_w1_b", ".hada_w2_a", ".hada_w2_b"), (".hada_t1", ".hada_t2")),
    "LoKr": Kind((".lokr_w1", ".lokr_w1_a", ".lokr_w2", ".lokr_w2_a"), may=(".lokr_w1_b", ".lokr_w2_b", ".lokr_t2")),
    "GLoRA": Kind((".a1.weight",), (".a2.weight", ".b1.weight", ".b2.weight")),
    "OFT": Kind((".oft_blocks",), may=(".rescale",)),
    "IA3": Kind((".on_input",), (".weight",)),
    "norm": Kind((".w_norm",), may=(".b_norm",)),
    "difference": Kind((".diff",), may=(".diff_b",)),
    "difference of biases": Kind((".diff_b",)),
    "replacement": Kind((".set_weight",)),
}
OF_ANY_KIND = (".alpha", ".dora_scale")  # beside the tensors of a kind

# Names that no layer of SDXL has, and the model that has them: the first match counts.
OTHER_MODELS = (
    (r"lora_unet_(double|single)_blocks_|(\w+\.)?(single_transformer|double|single)_blocks\.", "Flux"),
    (r"lora_unet_joint_blocks_|(\w+\.)?joint_blocks\.", "SD3"),
    (r"transformer\.|lora_transformer_", "Flux, SD3 or another transformer"),
    (r"(lora_unet_|unet\.)?(down_blocks[_.](0[_.]attentions|3)|up_blocks[_.](2[_.]attentions|3))", "SD 1.5 or 2"),
    (r"lora_unet_(input_blocks_(1_1|2_1|9|1\d)|output_blocks_([678]_1|9|1\d))_", "SD 1.5 or 2"),
)
OTHER_WIDTHS = {768: "SD 1.5", 1024: "SD 2", 1280: "SDXL's refiner"}  # of the text that cross-attention reads
TEXT_WIDTH = 2048  # SDXL's: 768 and 1280 of its two text encoders

SGM_BLOCK = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_\d")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA by its modules: name -> suffix -> tensor. A key of no known suffix is a module that has the suffix ""."""

    modules: Mapping[str, Module]
    metadata: Mapping[str, str]
    alphas: Mapping[str, float] | None = None

    def keys_of(self, modules: Iterable[str] | None = None) -> tuple[str, ...]:
        """All keys, or those of some modules."""
        names = self.modules if modules is None else modules
        return tuple(name + suffix for name in names for suffix in self.modules[name])

    def only(self, keep: Callable[[str, str], bool]) -> LoraFile:
        """The file without what `keep`, given a module and a suffix, does not want."""
        modules = {
            name: {suffix: tensor for suffix, tensor in module.items() if keep(name, suffix)}
            for name, module in self.modules.items()
        }
        return LoraFile({name: module for name, module in modules.items() if module}, self.metadata, self.alphas)


def lora_file(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], alphas: Mapping[str, float] | None = None
) -> LoraFile:
    """The tensors of a header, by modules."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    for key, tensor in tensors.items():
        suffix = next((one for one in _SUFFIXES if key.endswith(one) and key != one), "")
        modules.setdefault(key.removesuffix(suffix), {})[suffix] = tensor
    return LoraFile(modules, metadata, alphas)


def adapted_modules(file: LoraFile) -> list[str]:
    """Modules that an adapter of any kind changes, also of kinds that are no layers here; none in a checkpoint."""
    ours = {found[0] for key in file.keys_of() if (found := split_key(key))}
    return sorted(ours | {name for name, one in file.modules.items() if any(kind.fits(one) for kind in KINDS.values())})


def read_alphas(path: Path | str, tensors: Mapping[str, TensorInfo]) -> dict[str, float]:
    """Module -> its alpha, of the file at `path`: a header does not hold the values. A few bytes are read for each."""
    found = {}
    with open(path, "rb") as file:
        for key, tensor in tensors.items():
            if key.endswith(".alpha") and tensor.dtype in _SCALARS:
                code, before = _SCALARS[tensor.dtype]
                size = tensor.stop - tensor.start
                if len(before) + size == struct.calcsize(code):  # one number
                    file.seek(tensor.start)
                    found[key.removesuffix(".alpha")] = float(struct.unpack(code, before + file.read(size))[0])
    return found


def other_model(file: LoraFile) -> str | None:
    """The model that the file was made for, if that is plainly not SDXL."""
    widths = {input_width(module) for name, module in file.modules.items() if is_cross_attention(name)}
    for width, model in OTHER_WIDTHS.items():
        if width in widths:
            return model
    for pattern, model in OTHER_MODELS:
        if any(re.match(pattern, name) for name in file.modules):
            return model
    # Trainers number SDXL's text encoders. One without a number is SD 1.5's or 2's, unless SDXL's U-Net is there, too.
    numbered = any(name.startswith(("lora_te1_", "lora_te2_")) for name in file.modules)
    if numbered or not any(name.startswith("lora_te_") for name in file.modules):
        return None
    return None if TEXT_WIDTH in widths or any(SGM_BLOCK.match(name) for name in file.modules) else "SD 1.5 or 2"


def is_cross_attention(name: str) -> bool:
    """Whether the input of the layer is the text."""
    return "attn2" in name and name.endswith(("to_k", "to_v"))


def input_width(module: Module) -> int | None:
    """Channels that go into the layer, as far as the shapes of its adapter tell."""
    for suffix in _INPUT_SIDES:
        if suffix in module and len(module[suffix].shape) > 1:
            return module[suffix].shape[1]
    one, other = (module.get(f".lokr_w{n}") or module.get(f".lokr_w{n}_b") for n in (1, 2))
    return one.shape[1] * other.shape[1] if one and other and min(len(one.shape), len(other.shape)) > 1 else None


_INPUT_SIDES = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".hada_w1_b", ".diff")
# Those with more dots go before their own ends.
_SUFFIXES = sorted(
    {*OF_ANY_KIND, *(suffix for kind in KINDS.values() for suffix in kind.suffixes)}, key=len, reverse=True
)
_SCALARS = {  # dtype -> how to unpack it, and bytes that must stand before it
    "F16": ("<e", b""),
    "BF16": ("<f", b"\0\0"),
    "F32": ("<f", b""),
    "F64": ("<d", b""),
    "I32": ("<i", b""),
    "I64": ("<q", b""),
}
