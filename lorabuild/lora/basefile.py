"""Find in a base, a single file or a diffusers folder, the weight that each module of a LoRA changes, by header alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorabuild.bases.family import stranger
from lorabuild.bases.layout import PREFIXES, find_part
from lorabuild.errors import JobError
from lorabuild.header import TensorInfo, read_header
from lorabuild.lora.canonical import TEXT_PROJECTION, canonical
from lorabuild.lora.keymap import OPENCLIP_LAYER, PREFIX

# In SGM's single file: the beginning of a component's names, and the name by which `canonical` knows it.
UNET_PREFIX, _TE1_PREFIX, _TE2_PREFIX = (PREFIXES[name] for name in ("unet", "te1", "te2"))
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(attn\.out_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_IN_PROJ = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_weight")
_OPENCLIP = {theirs: ours.replace(".", "_") for ours, theirs in OPENCLIP_LAYER.items()}
_TE2_LAYER = PREFIX["te2"] + "text_model_encoder_layers_{}_{}"
_FOLDER_PREFIX = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2."}


@dataclass(frozen=True)
class BaseWeight:
    """A weight [O, I, *k] of a base: where its bytes lie. `info.shape` is as stored: [I, O] if `transposed`."""

    path: Path
    key: str
    info: TensorInfo
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape[::-1] if self.transposed else self.info.shape


def base_weights(base: Path) -> dict[str, BaseWeight]:
    """kohya's name -> weight, of every module of the base at `base` that a LoRA can change, in file order.

    Also those that LyCORIS leaves alone: time_embed, label_emb, input_blocks_0_0, out_2, te2's text_projection. Raises
    JobError where it is neither an SDXL checkpoint in SGM's layout nor a folder in diffusers' layout.
    """
    found = dict(_of_folder(base) if base.is_dir() else _of_single_file(base))
    if not any(name.startswith(PREFIX["unet"]) for name in found):
        if not base.is_dir() and (what := stranger(read_header(base).tensors, ["unet"])):
            raise JobError(f"{base}: {what}")
        wanted = "in its unet/" if base.is_dir() else f"{UNET_PREFIX}… (SGM's single file)"
        raise JobError(f"{base}: not an SDXL base: it has no U-Net weights {wanted}")
    return found


def _of_folder(base: Path) -> Iterator[tuple[str, BaseWeight]]:
    for component, prefix in _FOLDER_PREFIX.items():
        for key, (path, info) in find_part(base, component).tensors.items():
            if (
                len(info.shape) >= 2
                and key.endswith(".weight")
                and (name := canonical(prefix + key[: -len(".weight")]))
            ):
                yield name, BaseWeight(path, key, info)


def _of_single_file(path: Path) -> Iterator[tuple[str, BaseWeight]]:
    for key, info in read_header(path).tensors.items():
        if len(info.shape) < 2:
            continue
        if key.startswith(_TE2_PREFIX):
            yield from _openclip(path, key, info)
            continue
        name = canonical(key.removesuffix(".weight")) if key.startswith((UNET_PREFIX, _TE1_PREFIX)) else None
        if name and key.endswith(".weight"):
            yield name, BaseWeight(path, key, info)


def _openclip(path: Path, key: str, info: TensorInfo) -> Iterator[tuple[str, BaseWeight]]:
    """OpenCLIP keeps q, k and v in one matrix, in that order; resize_lora takes them for k, q, v."""
    rest = key.removeprefix(_TE2_PREFIX)
    if match := _RESBLOCK.fullmatch(rest):
        yield _TE2_LAYER.format(match[1], _OPENCLIP[match[2]]), BaseWeight(path, key, info)
    elif rest == "text_projection":  # applied as x @ W, where a linear layer is x @ Wᵀ
        yield TEXT_PROJECTION, BaseWeight(path, key, info, transposed=True)
    elif (match := _IN_PROJ.fullmatch(rest)) and info.shape[0] % 3 == 0:
        rows, third = info.shape[0] // 3, (info.stop - info.start) // 3
        for number, part in enumerate("qkv"):
            start = info.start + number * third
            own = TensorInfo(info.dtype, (rows, *info.shape[1:]), start, start + third)
            yield _TE2_LAYER.format(match[1], f"self_attn_{part}_proj"), BaseWeight(path, key, own)
