"""Say, from a LoRA's header, what ComfyUI, Forge, diffusers and InvokeAI will make of the file on SDXL.

A loader is a row of LOADERS: the namings of layers that it knows, the kinds of adapters that it takes, and its own rules.
They were read from the loaders' sources in 2026; what is said of diffusers, a test compares with diffusers itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lorabuild.header import TensorInfo
from lorabuild.lora.diffusers_rules import alphas_unread, diffusers
from lorabuild.lora.modules import KINDS, SGM_BLOCK, LoraFile, input_width, is_cross_attention, lora_file, other_model
from lorabuild.lora.rules import Finding, Loader, Loads, half_pairs, ignores_unknown, shown

FORGE_TOLERATES = 12  # unmatched keys; with one more, it skips the whole LoRA
INVOKE_PREFIXES = ("lora_unet_", "lora_te1_", "lora_te2_")
INVOKE_DROPS = "bundle_emb"  # embeddings that some trainers pack into a LoRA
INVOKE_WIDTHS = {2048, 1280}  # of the text, of the time embedding
NOT_SDXL = (
    "it does not recognise SDXL: no cross-attention of width 2048, no attention of both text encoders (768 and 1280), no "
    "transformer block above 1"
)


@dataclass(frozen=True)
class Verdict:
    """What a loader makes of a file. `reason` is one line, empty if it loads; `unmatched` are the keys that it leaves.

    `note` is what does not change the result, or what the header alone does not tell.
    """

    loader: str
    loads: Loads
    reason: str = ""
    unmatched: tuple[str, ...] = ()
    note: str = ""


def verdicts(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], alphas: Mapping[str, float] | None = None
) -> tuple[Verdict, ...]:
    """What each of LOADERS makes of a file with this header, as a LoRA for SDXL.

    `alphas` are the values by module, from `modules.read_alphas`: without them, one fault of diffusers is not seen.
    """
    file = lora_file(tensors, metadata, alphas)
    other = other_model(file)
    return tuple(_verdict(loader, file, other) for loader in LOADERS)


def _verdict(loader: Loader, file: LoraFile, other: str | None) -> Verdict:
    if not file.modules:
        return Verdict(loader.name, "no", "it holds no tensors")
    if other:
        return Verdict(loader.name, "no", f"a LoRA for {other}, not for SDXL", loader.unmatched(file))
    findings = [finding for rule in loader.rules for finding in rule(loader, file)]
    worst = next((loads for loads in ("no", "partly") if any(one.loads == loads for one in findings)), "yes")
    reasons = [one.reason for one in findings if one.loads == worst]
    lost = {key for one in findings for key in one.keys}
    return Verdict(
        loader.name,
        worst,
        reasons[0] if worst == "no" else "; ".join(reasons),  # the first error is what the user sees
        tuple(key for key in file.keys_of() if key in lost),
        loader.note(file),
    )


# Forge. A1111, from which it comes, never skips a LoRA for unmatched keys.


def _skips_above_limit(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    unmatched = loader.unmatched(file)
    if len(unmatched) > FORGE_TOLERATES:
        reason = f"{len(unmatched):,} keys match nothing; above {FORGE_TOLERATES}, it skips the whole LoRA"
        yield Finding("no", f"{reason}: {shown(unmatched)}", unmatched)


def _does_not_say_sdxl(file: LoraFile) -> str:
    """It sorts LoRAs by their metadata: what has some, but not this, counts as SD 1.5's."""
    architecture, base = (file.metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version"))
    if architecture.startswith("stable-diffusion-xl") or base.startswith("sdxl_"):
        return ""
    return "neither modelspec.architecture nor ss_base_model_version says SDXL: its filter for XL does not know the file, and may hide it"


# InvokeAI.


def _refuses_prefixes(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    odd = tuple(key for key in file.keys_of() if not key.startswith((*INVOKE_PREFIXES, INVOKE_DROPS)))
    if odd:
        reason = f"ValueError, a key begins with {', '.join(INVOKE_PREFIXES[:-1])} or {INVOKE_PREFIXES[-1]}"
        yield Finding("no", f"{reason}: {shown(odd)}", odd)


def _refuses_mixed_blocks(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    unet = [name for name in file.modules if name.startswith("lora_unet_")]
    others = [name for name in unet if not SGM_BLOCK.match(name)]
    if others and len(others) < len(unet):
        yield Finding(
            "no", f"ValueError, only some U-Net keys have SGM's names: not {shown(others)}", file.keys_of(others)
        )


def _refuses_kinds(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """A module must be of a kind that it has; an alpha or a bias alone is of none."""
    kinds = [KINDS[kind] for kind in loader.kinds]
    modules = {name: module for name, module in file.modules.items() if name.startswith(INVOKE_PREFIXES)}
    odd = [name for name, module in modules.items() if not any(kind.fits(module) for kind in kinds)]
    if odd:
        yield Finding("no", f"ValueError, a module of no kind that it has: {shown(odd)}", file.keys_of(odd))
    dora = [name for name, one in modules.items() if ".dora_scale" in one and not KINDS["LoRA"].fits(one)]
    if dora:
        yield Finding("no", f"KeyError, it has DoRA only of LoRA: {shown(dora)}", file.keys_of(dora))


@dataclass(frozen=True)
class Signs:
    """By what it tells the base of a file. Of several files together, the signs are those of each.

    Widths of what U-Net layers read, and the text encoders; whether a transformer has more than two blocks.
    """

    unet: frozenset[int]
    te1: frozenset[int]
    te2: frozenset[int]
    deep: bool

    @property
    def is_sdxl(self) -> bool:
        text = {one + other for one in self.te1 for other in self.te2}
        return bool((self.unet | text) & INVOKE_WIDTHS) or self.deep


def invoke_signs(file: LoraFile) -> Signs:
    """The width of the text or of the time embedding, and transformers of more than two blocks.

    The time embedding counts only under diffusers' name of the layer: SGM's is emb_layers_1.
    """

    def widths(prefix: str, tells: Callable[[str], bool]) -> frozenset[int]:
        found = (input_width(one) for name, one in file.modules.items() if name.startswith(prefix) and tells(name))
        return frozenset(width for width in found if width)

    unet = widths("lora_unet_", lambda name: is_cross_attention(name) or name.endswith("time_emb_proj"))
    te1, te2 = (widths(prefix, lambda name: "_self_attn_" in name) for prefix in ("lora_te1_", "lora_te2_"))
    blocks = (re.match(r"lora_unet_.+_transformer_blocks_(\d+)_", name) for name in file.modules)
    return Signs(unet, te1, te2, any(block and int(block[1]) >= 2 for block in blocks))


def _recognises_base(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    if not invoke_signs(file).is_sdxl:
        yield Finding("no", NOT_SDXL)


_KOHYA = ("kohya, SGM blocks", "kohya, diffusers blocks", "kohya, text", "kohya, text projection 2")
_COMFYUI = (
    *_KOHYA,
    "kohya, one text encoder",
    "kohya, text projection 1",
    "SGM paths",
    "diffusers processor paths",
    "bare processor paths",
    "diffusers text paths",
)
_NOT_IN_FORGE = ("IA3", "OFT", "replacement")

LOADERS = (
    Loader(
        "ComfyUI",
        namings=(*_COMFYUI, "lycoris_", "ComfyUI text paths"),
        kinds=tuple(kind for kind in KINDS if kind != "IA3"),
        rules=(half_pairs, ignores_unknown),
    ),
    Loader(
        "Forge",
        namings=_COMFYUI,
        kinds=tuple(kind for kind in KINDS if kind not in _NOT_IN_FORGE),
        rules=(half_pairs, _skips_above_limit, ignores_unknown),
        note=_does_not_say_sdxl,
    ),
    Loader(
        "diffusers",
        namings=(
            *_KOHYA,
            "kohya, one text encoder",
            "diffusers paths",
            "diffusers processor paths",
            "diffusers text paths",
        ),
        kinds=("LoRA", "PEFT", "diffusers", "diffusers processor", "diffusers text"),
        rules=(diffusers,),
        note=alphas_unread,
    ),
    Loader(
        "InvokeAI",
        namings=_KOHYA,
        kinds=("LoRA", "LoRA with Tucker mid", "LoHa", "LoKr", "IA3", "norm", "difference"),
        rules=(
            _refuses_prefixes,
            _refuses_mixed_blocks,
            half_pairs,
            _refuses_kinds,
            _recognises_base,
            ignores_unknown,
        ),
    ),
)
