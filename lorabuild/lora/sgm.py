"""Find each weight of a network of SDXL under the name that a base's file has for it: SGM's, OpenCLIP's, or an older one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lorabuild.bases.layout import Part, Stored
from lorabuild.header import TensorInfo
from lorabuild.lora.basefile import BaseWeight
from lorabuild.lora.keymap import OPENCLIP_LAYER, OPENCLIP_OUTSIDE, to_sgm

# What files hold that no network of SDXL has: CLIP's training, a projection of the first encoder that ComfyUI saves, the
# loss of a VAE's training.
IGNORED = {
    "unet": (),
    "vae": ("loss.",),
    "te1": ("logit_scale", "text_projection"),
    "te2": ("logit_scale",),
}
_CLIP_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QKV = re.compile(r"self_attn\.([qkv])_proj")

# diffusers' names of a VAE's layers, in this order, and LDM's. An up level is counted from the other end.
VAE_LEVELS = 4
_VAE_NAMES = (
    (re.compile(r"\.up_blocks\.(\d+)\."), lambda match: f".up.{VAE_LEVELS - 1 - int(match[1])}."),
    (re.compile(r"\.down_blocks\.(\d+)\."), r".down.\1."),
    (re.compile(r"\.mid_block\.resnets\.(\d+)\."), lambda match: f".mid.block_{int(match[1]) + 1}."),
    (re.compile(r"\.mid_block\.attentions\.0\."), ".mid.attn_1."),
    (re.compile(r"\.resnets\."), ".block."),
    (re.compile(r"\.(up|down)samplers\.0\."), r".\1sample."),
    (re.compile(r"\.conv_shortcut\."), ".nin_shortcut."),
    (re.compile(r"coder\.conv_norm_out\."), "coder.norm_out."),
    (re.compile(r"\.attn_1\.group_norm\."), ".attn_1.norm."),
    (re.compile(r"\.attn_1\.to_out\.0\."), ".attn_1.proj_out."),
    (re.compile(r"\.attn_1\.to_([qkv])\."), r".attn_1.\1."),
)
# A VAE's attention as diffusers called it before 0.15.
_OLD_VAE = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def find_weights(component: str, part: Part, names: Iterable[str]) -> tuple[dict[str, BaseWeight], list[str]]:
    """Name in the network -> where its weight lies; and the names that the file has beyond them, in its own words.

    `names` are those of the network's state: what the file lacks is missing in the result. Nothing is read.
    """
    names = list(names)
    found: dict[str, BaseWeight] = {}
    used: set[str] = set()
    for name in names:
        for key, third, transposed in _ways(component, name, part.sgm):
            if (stored := part.tensors.get(key)) is not None:
                found[name] = BaseWeight(stored.path, key, _third(stored, third), transposed)
                used.add(key)
                break
    ignored = IGNORED[component]
    left = [key for key in part.tensors if key not in used and not (ignored and key.startswith(ignored))]
    return found, left


def vae_to_sgm(name: str) -> str:
    """LDM's name of a parameter of diffusers' AutoencoderKL, with three or four levels and one attention in the middle."""
    for pattern, replacement in _VAE_NAMES:
        name = pattern.sub(replacement, name)
    return name


def clip_to_openclip(name: str) -> tuple[str, int | None, bool]:
    """OpenCLIP's name of a parameter of transformers' CLIP text encoder (without `text_model.`): (name, third, transposed).

    q, k and v are the first, second and third part of one matrix; `text_projection` is applied as x @ W, not as x @ Wᵀ.
    """
    if match := _CLIP_LAYER.fullmatch(name):
        number, layer, kind = match.groups()
        block = f"transformer.resblocks.{number}"
        if qkv := _QKV.fullmatch(layer):
            return f"{block}.attn.in_proj_{kind}", "qkv".index(qkv[1]), False
        return f"{block}.{OPENCLIP_LAYER[layer]}.{kind}", None, False
    return OPENCLIP_OUTSIDE[name], None, name.startswith("text_projection.")


def _ways(component: str, name: str, sgm: bool) -> Iterator[tuple[str, int | None, bool]]:
    """The names that a weight may have in a file: (name, which third of it or None, whether it is transposed)."""
    if component in ("te1", "te2"):
        bare = name.removeprefix("text_model.")
        if sgm and component == "te2":
            yield clip_to_openclip(bare)
        yield f"text_model.{bare}", None, False
        yield bare, None, False
        return
    if sgm:
        yield (to_sgm(name) if component == "unet" else vae_to_sgm(name)), None, False
        return
    yield name, None, False
    if component == "vae":
        for new, old in _OLD_VAE.items():
            if new in name:
                yield name.replace(new, old), None, False


def _third(stored: Stored, third: int | None) -> TensorInfo:
    """The whole tensor, or one of three equal parts along its first side."""
    info = stored.info
    if third is None or not info.shape or info.shape[0] % 3:
        return info
    length = (info.stop - info.start) // 3
    start = info.start + third * length
    return TensorInfo(info.dtype, (info.shape[0] // 3, *info.shape[1:]), start, start + length)
