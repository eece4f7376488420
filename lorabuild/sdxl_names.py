"""Read the keys of a LoRA file for SDXL: its layers, by topology and in the world's namings, and kinds of adapters.

Facts about names only: what a program makes of them is told in loaders.py. No tensor is read, but for alphas.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from lorabuild.header import TensorInfo

Module = Mapping[str, TensorInfo]  # suffix -> tensor

DEPTHS = (0, 2, 10)  # transformer blocks of an attention, by level of the U-Net: 320, 640, 1280 channels
GROUP = 3  # SGM blocks a level: two ResNets and a downsampler on the way down, three ResNets on the way up
TEXT_LAYERS = {1: 12, 2: 32}  # CLIP ViT-L, OpenCLIP ViT-bigG

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_SKIP = {"skip_connection": "conv_shortcut"}  # only where the number of channels changes
_TRANSFORMER = (
    *(f"attn{number}.{part}" for number in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
    *(f"norm{number}" for number in (1, 2, 3)),
)
_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_NORMS = ("norm", "norm1", "norm2", "norm3", "conv_norm_out")
_CLIP = (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class Layer:
    """A layer with a weight. "block" is one of the 788 of a full LoCon; "outside" is in no block; "norm" has no LoRA."""

    sgm: str
    diffusers: str
    kind: Literal["block", "outside", "norm"]


@cache
def unet_layers() -> tuple[Layer, ...]:
    """All layers of SDXL's U-Net that have a weight, 788 of them of kind "block"."""
    return tuple(Layer(sgm, diffusers, _kind(sgm, diffusers)) for sgm, diffusers in _unet())


@cache
def text_layers(encoder: int) -> tuple[str, ...]:
    """Paths of the six linear parts of each layer of text encoder 1 or 2, as SDXL's files have them: 72 and 192."""
    return tuple(f"text_model.encoder.layers.{n}.{part}" for n in range(TEXT_LAYERS[encoder]) for part in _CLIP)


def _kind(sgm: str, diffusers: str) -> Literal["block", "outside", "norm"]:
    if diffusers.rpartition(".")[2] in _NORMS:
        return "norm"
    return "outside" if sgm in _OUTSIDE else "block"


def _unet() -> Iterator[tuple[str, str]]:
    """(SGM path, diffusers path), block by block."""
    yield from _OUTSIDE.items()
    last = len(DEPTHS) - 1
    for level, depth in enumerate(DEPTHS):
        for index in range(GROUP - 1):
            sgm, side = f"input_blocks.{1 + GROUP * level + index}", f"down_blocks.{level}"
            yield from _resnet(f"{sgm}.0", f"{side}.resnets.{index}", skip=level > 0 and index == 0)
            yield from _attention(f"{sgm}.1", f"{side}.attentions.{index}", depth)
        if level < last:
            yield f"input_blocks.{GROUP * (level + 1)}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
    yield from _resnet("middle_block.0", "mid_block.resnets.0", skip=False)
    yield from _attention("middle_block.1", "mid_block.attentions.0", DEPTHS[last])
    yield from _resnet("middle_block.2", "mid_block.resnets.1", skip=False)
    for level, depth in enumerate(reversed(DEPTHS)):
        for index in range(GROUP):
            sgm, side = f"output_blocks.{GROUP * level + index}", f"up_blocks.{level}"
            yield from _resnet(f"{sgm}.0", f"{side}.resnets.{index}", skip=True)  # its input has the skipped channels
            yield from _attention(f"{sgm}.1", f"{side}.attentions.{index}", depth)
        if level < last:
            yield f"output_blocks.{GROUP * (level + 1) - 1}.2.conv", f"up_blocks.{level}.upsamplers.0.conv"


def _resnet(sgm: str, diffusers: str, skip: bool) -> Iterator[tuple[str, str]]:
    for ours, theirs in {**_RESNET, **(_SKIP if skip else {})}.items():
        yield f"{sgm}.{ours}", f"{diffusers}.{theirs}"


def _attention(sgm: str, diffusers: str, depth: int) -> Iterator[tuple[str, str]]:
    """A transformer has the same names in both. None at all where `depth` is 0."""
    blocks = [f"transformer_blocks.{n}.{part}" for n in range(depth) for part in _TRANSFORMER]
    for layer in ["norm", "proj_in", *blocks, "proj_out"] if depth else []:
        yield f"{sgm}.{layer}", f"{diffusers}.{layer}"


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

    def keys(self, modules: Iterable[str] | None = None) -> tuple[str, ...]:
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
        name, dot, rest = key.partition(".")
        suffix = dot + rest
        if not (key.startswith(("lora_", "lycoris_")) and suffix in _SUFFIXES):
            match = _DOTTED.fullmatch(key)
            name, suffix = (match[1], match[2]) if match else (key, "")
        modules.setdefault(name, {})[suffix] = tensor
    return LoraFile(modules, metadata, alphas)


def read_alphas(path: Path | str, tensors: Mapping[str, TensorInfo]) -> dict[str, float]:
    """Module -> its alpha, of the file at `path`: a header does not hold the values. A few bytes are read for each."""
    found = {}
    with open(path, "rb") as file:
        for key, tensor in tensors.items():
            if key.endswith(".alpha") and tensor.dtype in _SCALARS:
                code, before = _SCALARS[tensor.dtype]
                file.seek(tensor.start)
                data = before + file.read(tensor.stop - tensor.start)
                if len(data) == struct.calcsize(code):  # one number
                    found[key.removesuffix(".alpha")] = float(struct.unpack(code, data)[0])
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


@cache
def known_modules(namings: tuple[str, ...]) -> frozenset[str]:
    """Every name that a layer of SDXL has in these NAMINGS."""
    return frozenset(name for naming in namings for name in NAMINGS[naming]())


def _flat_unet(prefix: str, path: Callable[[Layer], str]) -> set[str]:
    return {prefix + path(layer).replace(".", "_") for layer in unet_layers()}


def _dotted_unet(prefix: str, path: Callable[[Layer], str]) -> set[str]:
    return {prefix + path(layer) for layer in unet_layers()}


def _text(first: str, second: str) -> set[str]:
    return {prefix + path for encoder, prefix in ((1, first), (2, second)) for path in text_layers(encoder)}


def _flat_text(encoder: int, prefix: str) -> set[str]:
    return {prefix + path.replace(".", "_") for path in text_layers(encoder)}


def _sgm(layer: Layer) -> str:
    return layer.sgm


def _diffusers(layer: Layer) -> str:
    return layer.diffusers


def _processor(layer: Layer) -> str:
    """diffusers' path as it once was in an attention."""
    return re.sub(r"\.to_out\.0$", ".to_out", layer.diffusers).replace(".to_", ".processor.to_")


NAMINGS: dict[str, Callable[[], set[str]]] = {
    "kohya, SGM blocks": lambda: _flat_unet("lora_unet_", _sgm),
    "kohya, diffusers blocks": lambda: _flat_unet("lora_unet_", _diffusers),
    "kohya, text": lambda: _flat_text(1, "lora_te1_") | _flat_text(2, "lora_te2_"),
    "kohya, one text encoder": lambda: _flat_text(1, "lora_te_"),
    "kohya, text projection 1": lambda: {"lora_te1_text_projection"},
    "kohya, text projection 2": lambda: {"lora_te2_text_projection"},
    "lycoris_": lambda: _flat_unet("lycoris_", _diffusers),
    "SGM paths": lambda: _dotted_unet("diffusion_model.", _sgm),
    "diffusers paths": lambda: _dotted_unet("unet.", _diffusers),
    "diffusers processor paths": lambda: _dotted_unet("unet.", _processor),
    "bare processor paths": lambda: _dotted_unet("", _processor),
    "diffusers text paths": lambda: _text("text_encoder.", "text_encoder_2."),
    "ComfyUI text paths": lambda: _text("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."),
}

_INPUT_SIDES = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".hada_w1_b", ".diff")
_SUFFIXES = sorted({*OF_ANY_KIND, *(suffix for kind in KINDS.values() for suffix in kind.suffixes)})
_DOTTED = re.compile(rf"(.+?)({'|'.join(map(re.escape, _SUFFIXES))})")
_SCALARS = {  # dtype -> how to unpack it, and bytes that must stand before it
    "F16": ("<e", b""),
    "BF16": ("<f", b"\0\0"),
    "F32": ("<f", b""),
    "F64": ("<d", b""),
    "I32": ("<i", b""),
    "I64": ("<q", b""),
}
