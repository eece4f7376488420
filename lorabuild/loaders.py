"""Say, from a LoRA's header, what ComfyUI, Forge, diffusers and InvokeAI will make of the file on SDXL.

A loader is a row of LOADERS: the namings of layers that it knows, the kinds of adapters that it takes, and its own rules.
They were read from the loaders' sources in 2026; what is said of diffusers, a test compares with diffusers itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lorabuild.header import TensorInfo
from lorabuild.sdxl_names import (
    KINDS,
    OF_ANY_KIND,
    SGM_BLOCK,
    LoraFile,
    Module,
    input_width,
    is_cross_attention,
    known_modules,
    lora_file,
    other_model,
)

Loads = Literal["yes", "partly", "no"]

FORGE_TOLERATES = 12  # unmatched keys; with one more, it skips the whole LoRA
DIFFUSERS_PREFIXES = ("lora_te_", "lora_unet_", "lora_te1_", "lora_te2_")  # it converts a file of these, and no other
INVOKE_PREFIXES = ("lora_unet_", "lora_te1_", "lora_te2_")
INVOKE_DROPS = "bundle_emb"  # embeddings that some trainers pack into a LoRA
INVOKE_WIDTHS = {2048, 1280}  # of the text, of the time embedding


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


@dataclass(frozen=True)
class Finding:
    """A flaw of a file in a loader's eyes, and the keys that are lost by it."""

    loads: Loads
    reason: str
    keys: tuple[str, ...] = ()


Rule = Callable[["Loader", LoraFile], Iterator[Finding]]


@dataclass(frozen=True)
class Loader:
    """`namings` and `kinds` are names of sdxl_names; the rules stand in the order in which they strike."""

    name: str
    namings: tuple[str, ...]
    kinds: tuple[str, ...]
    rules: tuple[Rule, ...]
    note: Callable[[LoraFile], str] = lambda file: ""

    def unmatched(self, file: LoraFile) -> tuple[str, ...]:
        """Keys that mean nothing to it: of a layer that it does not know, or of a kind that it does not take."""
        known = known_modules(self.namings)
        found = []
        for name, module in file.modules.items():
            kinds = [KINDS[kind] for kind in self.kinds if KINDS[kind].fits(module)] if name in known else []
            taken = {*OF_ANY_KIND, *(suffix for kind in kinds for suffix in kind.suffixes)} if name in known else ()
            found += [name + suffix for suffix in module if suffix not in taken]
        return tuple(found)


def verdicts(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], alphas: Mapping[str, float] | None = None
) -> tuple[Verdict, ...]:
    """What each of LOADERS makes of a file with this header, as a LoRA for SDXL.

    `alphas` are the values by module, from `sdxl_names.read_alphas`: without them, one fault of diffusers is not seen.
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
        tuple(key for key in file.keys() if key in lost),  # noqa: SIM118 - not a dictionary
        loader.note(file),
    )


# Rules of all.


def _half_pairs(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """An up without its down, or a factor without the others, is an error for all. A down alone means nothing to most."""
    kinds = [KINDS[kind] for kind in loader.kinds]
    yield from _incomplete(file, lambda module: any(kind.fits(module) and not kind.whole(module) for kind in kinds))


def _incomplete(file: LoraFile, lacks: Callable[[Module], bool]) -> Iterator[Finding]:
    if halves := [name for name, module in file.modules.items() if lacks(module)]:
        yield Finding("no", f"a module lacks one of its matrices: {_shown(halves)}", file.keys(halves))


def _ignores_unknown(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """What a loader does not know, it leaves out, and goes on."""
    unmatched, count = loader.unmatched(file), len(file.keys())
    if len(unmatched) == count:
        yield Finding("no", f"it knows none of the keys: {_shown(unmatched)}", unmatched)
    elif unmatched:
        yield Finding("partly", f"{len(unmatched):,} of {count:,} keys are ignored: {_shown(unmatched)}", unmatched)


# Forge. A1111, from which it comes, never skips a LoRA for unmatched keys.


def _skips_above_limit(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    unmatched = loader.unmatched(file)
    if len(unmatched) > FORGE_TOLERATES:
        reason = f"{len(unmatched):,} keys match nothing; above {FORGE_TOLERATES}, it skips the whole LoRA"
        yield Finding("no", f"{reason}: {_shown(unmatched)}", unmatched)


def _does_not_say_sdxl(file: LoraFile) -> str:
    """It sorts LoRAs by their metadata: what has some, but not this, counts as SD 1.5's."""
    architecture, base = (file.metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version"))
    if architecture.startswith("stable-diffusion-xl") or base.startswith("sdxl_"):
        return ""
    return "neither modelspec.architecture nor ss_base_model_version says SDXL: its filter for XL does not know the file, and may hide it"


# diffusers. It takes kohya's names if there are no others; else those of its own.


def _diffusers(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    dora = tuple(key for key in file.keys() if "dora_scale" in key)  # noqa: SIM118
    if dora:
        yield Finding("partly", f"it drops dora_scale, so that the result is wrong: {_shown(dora)}", dora)
    file = file.only(lambda name, suffix: "dora_scale" not in name + suffix)
    if not all(name.startswith(DIFFUSERS_PREFIXES) for name in file.modules):
        yield from _wants_lora_in_keys(loader, file)
        if lost := [name for name in file.modules if name.startswith(DIFFUSERS_PREFIXES)]:
            others = file.only(lambda name, suffix: name not in lost)
            loads = "no" if len(loader.unmatched(others)) == len(others.keys()) else "partly"
            reason = f"it ignores kohya's names if there are others, here {_shown(tuple(others.modules))}"
            yield Finding(loads, f"{reason}: {_shown(lost)}", file.keys(lost))
            file = others
        for rule in (_any_half, _wants_text_attention):
            yield from rule(loader, file)
    else:
        if lost := _mixed_in(file):
            reason = "names of blocks are mixed, and it deletes SGM's"
            yield Finding("partly", f"{reason}: {_shown(lost)}", file.keys(lost))
            file = file.only(lambda name, suffix: name not in lost)
        for rule in (_any_half, _refuses_leftovers, _refuses_two_alphas, _wants_out_or_mlp, _wants_one_rank):
            yield from rule(loader, file)
        yield from _loses_alphas(file)
    yield from _knows_no_layer(loader, file)
    yield from _ignores_unknown(loader, file)


def _any_half(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """An error with kohya's names; with its own names no error, but numbers at random."""
    kinds = [KINDS[kind] for kind in loader.kinds]
    yield from _incomplete(
        file,
        lambda module: any(not kind.whole(module) and any(one in module for one in kind.suffixes) for kind in kinds),
    )


def _mixed_in(file: LoraFile) -> tuple[str, ...]:
    """Modules with SGM names of blocks, if others have diffusers' names."""
    others = any(re.search("down_blocks|mid_block|up_blocks", name) for name in file.modules)
    sgm = (name for name in file.modules if re.search("input_blocks|middle_block|output_blocks", name))
    return tuple(sgm) if others else ()


def _refuses_leftovers(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """A kohya file may hold pairs and their alphas, and nothing else."""
    left = tuple(
        name + suffix
        for name, module in file.modules.items()
        for suffix in module
        if suffix not in (".lora_down.weight", ".lora_up.weight", ".alpha") or ".lora_down.weight" not in module
    )
    if left:
        alone = all(key.endswith(".alpha") for key in left)
        what = "an alpha without its weights" if alone else "only lora_down, lora_up and alpha are converted"
        yield Finding("no", f"ValueError, {what}: {_shown(left)}", left)


def _refuses_two_alphas(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    if file.metadata.get("lora_adapter_metadata") and any(".alpha" in module for module in file.modules.values()):
        yield Finding("no", "ValueError, lora_adapter_metadata does not go with alphas")


def _wants_out_or_mlp(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """By these layers it tells which of its layouts a text encoder's keys have."""
    for component, modules in _by_component(file).items():
        if not component.startswith("text_encoder"):
            continue
        lost = [name for name in modules if "_self_attn_" in name]
        if any(name.endswith("_out_proj") for name in lost):
            continue
        if not any("_mlp_" in name for name in modules):
            reason = f"ValueError, of {component} there is neither out_proj nor mlp: {_shown(modules)}"
            yield Finding("no", reason, file.keys(modules))
        elif lost:
            reason = f"it ignores attention of {component}, which has no out_proj: {_shown(lost)}"
            yield Finding("partly", reason, file.keys(lost))


def _wants_one_rank(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """The projection of the second text encoder gets the rank that most of its layers have."""
    projection, down = "lora_te2_text_projection", ".lora_down.weight"
    modules = _by_component(file).get("text_encoder_2", {})
    ranks = {name: module[down].shape[0] for name, module in modules.items() if down in module}
    own = ranks.pop(projection, None)
    if own and ranks and own != (usual := Counter(ranks.values()).most_common(1)[0][0]):
        reason = f"RuntimeError, text_projection has rank {own} and the text encoder {usual}"
        yield Finding("no", reason, file.keys([projection]))


def _loses_alphas(file: LoraFile) -> Iterator[Finding]:
    """It looks for an alpha under a name that attention does not have, and takes the most common one of the component.

    The same where a module has none. With transformers 5, it misses all alphas of the first text encoder.
    """
    for component, modules in _by_component(file).items():
        ranks = {name: one[".lora_down.weight"].shape[0] for name, one in modules.items() if ".lora_down.weight" in one}
        bare = [name for name in ranks if ".alpha" not in modules[name]]
        if not ranks or len(bare) == len(ranks):
            continue  # no alpha at all is scale 1, as it should be
        alphas = {name: file.alphas[name] for name in ranks if name in file.alphas} if file.alphas else {}
        if not alphas:
            if bare:
                yield Finding("partly", f"modules without an alpha get that of others in {component}: {_shown(bare)}")
            continue
        usual = max(Counter(alphas.values()).items(), key=lambda item: item[1])[0]  # of equals the first, as there
        wrong = [name for name, alpha in alphas.items() if alpha != usual and _alpha_is_missed(component, name)]
        wrong += [name for name in bare if ranks[name] != usual]
        if wrong:
            count = f"{len(wrong):,} of {len(ranks):,} modules of {component}"
            reason = f"alpha varies, and {count} get the most common one, {usual:g}, without an error"
            yield Finding("partly", f"{reason}: {_shown(wrong)}")


def _alpha_is_missed(component: str, name: str) -> bool:
    return component == "text_encoder" or bool(re.search(r"_attn[12]?_", name))


def _wants_lora_in_keys(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    if nameless := tuple(key for key in file.keys() if "lora" not in key):  # noqa: SIM118
        yield Finding("no", f'ValueError, each key must have "lora" in it: {_shown(nameless)}', nameless)


def _wants_text_attention(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    for component, modules in _by_component(file).items():
        peft = any(KINDS["PEFT"].fits(module) for module in modules.values())
        if peft and component.startswith("text_encoder") and not any(".self_attn." in name for name in modules):
            reason = f"ValueError, {component} has no attention in it: {_shown(modules)}"
            yield Finding("no", reason, file.keys(modules))


def _knows_no_layer(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """It passes over a layer that it does not know; to know none of a component is an error."""
    unmatched = set(loader.unmatched(file))
    for component, modules in _by_component(file).items():
        keys = file.keys(modules)
        if component in ("unet", "text_encoder", "text_encoder_2") and unmatched.issuperset(keys):
            yield Finding("no", f"an error, it knows no layer of {component}: {_shown(keys)}", keys)


def _by_component(file: LoraFile) -> dict[str, dict[str, Module]]:
    """Modules of unet, text_encoder and text_encoder_2, by kohya's or diffusers' names."""
    prefixes = {
        "lora_unet_": "unet",
        "lora_te2_": "text_encoder_2",
        "lora_te1_": "text_encoder",
        "lora_te_": "text_encoder",
    }
    found: dict[str, dict[str, Module]] = {}
    for name, module in file.modules.items():
        component = next((its for prefix, its in prefixes.items() if name.startswith(prefix)), name.partition(".")[0])
        found.setdefault(component, {})[name] = module
    return found


def _alphas_unread(file: LoraFile) -> str:
    return "not checked: whether alpha varies from module to module" if file.alphas is None else ""


# InvokeAI.


def _refuses_prefixes(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    odd = tuple(key for key in file.keys() if not key.startswith((*INVOKE_PREFIXES, INVOKE_DROPS)))  # noqa: SIM118
    if odd:
        reason = f"ValueError, a key begins with {', '.join(INVOKE_PREFIXES[:-1])} or {INVOKE_PREFIXES[-1]}"
        yield Finding("no", f"{reason}: {_shown(odd)}", odd)


def _refuses_mixed_blocks(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    unet = [name for name in file.modules if name.startswith("lora_unet_")]
    others = [name for name in unet if not SGM_BLOCK.match(name)]
    if others and len(others) < len(unet):
        yield Finding(
            "no", f"ValueError, only some U-Net keys have SGM's names: not {_shown(others)}", file.keys(others)
        )


def _refuses_kinds(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """A module must be of a kind that it has; an alpha or a bias alone is of none."""
    kinds = [KINDS[kind] for kind in loader.kinds]
    modules = {name: module for name, module in file.modules.items() if name.startswith(INVOKE_PREFIXES)}
    odd = [name for name, module in modules.items() if not any(kind.fits(module) for kind in kinds)]
    if odd:
        yield Finding("no", f"ValueError, a module of no kind that it has: {_shown(odd)}", file.keys(odd))
    dora = [name for name, one in modules.items() if ".dora_scale" in one and not KINDS["LoRA"].fits(one)]
    if dora:
        yield Finding("no", f"KeyError, it has DoRA only of LoRA: {_shown(dora)}", file.keys(dora))


def _recognises_base(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """By the width of the text or of the time embedding, else by transformers of more than two blocks.

    The time embedding counts only under diffusers' name of the layer: SGM's is emb_layers_1.
    """

    def widths(prefix: str, tells: Callable[[str], bool]) -> set[int]:
        found = (input_width(one) for name, one in file.modules.items() if name.startswith(prefix) and tells(name))
        return {width for width in found if width}

    unet = widths("lora_unet_", lambda name: is_cross_attention(name) or name.endswith("time_emb_proj"))
    te1, te2 = (widths(prefix, lambda name: "_self_attn_" in name) for prefix in ("lora_te1_", "lora_te2_"))
    text = {one + other for one in te1 for other in te2}
    blocks = (re.match(r"lora_unet_.+_transformer_blocks_(\d+)_", name) for name in file.modules)
    if not (unet | text) & INVOKE_WIDTHS and not any(block and int(block[1]) >= 2 for block in blocks):
        yield Finding(
            "no",
            "it does not recognise SDXL: no cross-attention of width 2048, no attention of both text encoders (768 and "
            "1280), no transformer block above 1",
        )


def _shown(names: Mapping[str, Module] | tuple[str, ...] | list[str]) -> str:
    return next(iter(names)) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


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
        rules=(_half_pairs, _ignores_unknown),
    ),
    Loader(
        "Forge",
        namings=_COMFYUI,
        kinds=tuple(kind for kind in KINDS if kind not in _NOT_IN_FORGE),
        rules=(_half_pairs, _skips_above_limit, _ignores_unknown),
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
        rules=(_diffusers,),
        note=_alphas_unread,
    ),
    Loader(
        "InvokeAI",
        namings=_KOHYA,
        kinds=("LoRA", "LoRA with Tucker mid", "LoHa", "LoKr", "IA3", "norm", "difference"),
        rules=(
            _refuses_prefixes,
            _refuses_mixed_blocks,
            _half_pairs,
            _refuses_kinds,
            _recognises_base,
            _ignores_unknown,
        ),
    ),
)
