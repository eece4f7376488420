"""Say the shape of every weight that an adapter changes on an SDXL of given widths; no torch, no file."""

from __future__ import annotations

from dataclasses import dataclass

from lorabuild.lora.keymap import LAYERS_PER_BLOCK
from lorabuild.lora.sdxl_names import text_layers, unet_layers

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Widths:
    """Channels of the U-Net's levels, of the time embedding in it, and of both text encoders; the defaults are SDXL's."""

    levels: tuple[int, int, int] = (320, 640, 1280)
    te1: int = 768
    te2: int = 1280

    @property
    def time(self) -> int:
        return 4 * self.levels[0]


def weight_shapes(widths: Widths | None = None) -> dict[str, Shape]:
    """kohya's name -> [O, I, *k], of the 1052 layers that preset "full" adapts."""
    widths = widths or Widths()
    blocks, found = _blocks(widths.levels), {}
    for one in unet_layers():
        if one.kind == "block":
            section, number, rest = one.sgm.split(".", 2)
            layer = rest if section == "middle_block" else rest.partition(".")[2]  # only there are no slots in a block
            shape = _unet_shape(layer, *blocks[f"{section}.{number}"], widths)
            found["lora_unet_" + one.sgm.replace(".", "_")] = shape
    for encoder in (1, 2):
        width = (widths.te1, widths.te2)[encoder - 1]
        sizes = {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
        for path in text_layers(encoder):
            found[f"lora_te{encoder}_" + path.replace(".", "_")] = sizes.get(path[-3:], (width, width))
    return found


def norm_width(name: str, shapes: dict[str, Shape]) -> int:
    """Channels of a norm by kohya's name: those that go into the layer behind it."""
    for norm, layer in (("in_layers_0", "in_layers_2"), ("out_layers_0", "out_layers_3")):
        if name.endswith(norm):
            return shapes[name.removesuffix(norm) + layer][1]
    block, _, norm = name.rpartition("_norm")
    return shapes[f"{block}_attn1_to_q" if norm else f"{block}_proj_in"][1]


def has_bias(name: str) -> bool:
    """Whether the layer of this name has one: all do but an attention's inputs in the U-Net."""
    return not (name.startswith("lora_unet_") and name.endswith(("_to_q", "_to_k", "_to_v")))


def _blocks(levels: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """SGM's block -> channels into its ResNet, or resampler, and out of it. An output block reads an input's, too."""
    width, read = levels[0], [levels[0]]
    found: dict[str, tuple[int, int]] = {}
    number = 1
    for level, out in enumerate(levels):
        for _ in range(LAYERS_PER_BLOCK + (level < len(levels) - 1)):
            found[f"input_blocks.{number}"] = width, out
            width, number = out, number + 1
            read.append(out)
    for number in range(3):
        found[f"middle_block.{number}"] = width, width
    for number, out in enumerate(width for width in reversed(levels) for _ in range(LAYERS_PER_BLOCK + 1)):
        found[f"output_blocks.{number}"] = width + read.pop(), out
        width = out
    return found


def _unet_shape(layer: str, into: int, out: int, widths: Widths) -> Shape:
    """Of a layer by its name within the ResNet, transformer or resampler of a block."""
    if layer in ("in_layers.2", "out_layers.3", "op", "conv"):
        return out, into if layer == "in_layers.2" else out, 3, 3
    if layer == "skip_connection":
        return out, into, 1, 1
    if layer == "emb_layers.1":
        return out, widths.time
    if layer.endswith(("attn2.to_k", "attn2.to_v")):
        return out, widths.te1 + widths.te2
    if layer.endswith("ff.net.0.proj"):
        return 8 * out, out
    return out, 4 * out if layer.endswith("ff.net.2") else out
