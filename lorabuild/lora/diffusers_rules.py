"""What diffusers makes of a LoRA file: it takes kohya's names if there are no others; else those of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from lorabuild.lora.canonical import TEXT_PROJECTION
from lorabuild.lora.modules import KINDS, LoraFile, Module
from lorabuild.lora.rules import Finding, Loader, ignores_unknown, incomplete, shown

DIFFUSERS_PREFIXES = ("lora_te_", "lora_unet_", "lora_te1_", "lora_te2_")  # it converts a file of these, and no other


def diffusers(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    dora = tuple(key for key in file.keys_of() if "dora_scale" in key)
    if dora:
        loads = "no" if len(dora) == len(file.keys_of()) else "partly"
        yield Finding(loads, f"it drops dora_scale, so that the result is wrong: {shown(dora)}", dora)
    file = file.only(lambda name, suffix: "dora_scale" not in name + suffix)
    if not all(name.startswith(DIFFUSERS_PREFIXES) for name in file.modules):
        yield from _wants_lora_in_keys(loader, file)
        if lost := [name for name in file.modules if name.startswith(DIFFUSERS_PREFIXES)]:
            others = file.only(lambda name, suffix: name not in lost)
            loads = "no" if len(loader.unmatched(others)) == len(others.keys_of()) else "partly"
            reason = f"it ignores kohya's names if there are others, here {shown(tuple(others.modules))}"
            yield Finding(loads, f"{reason}: {shown(lost)}", file.keys_of(lost))
            file = others
        for rule in (_any_half, _wants_text_attention):
            yield from rule(loader, file)
    else:
        if lost := _mixed_in(file):
            reason = "names of blocks are mixed, and it deletes SGM's"
            yield Finding("partly", f"{reason}: {shown(lost)}", file.keys_of(lost))
            file = file.only(lambda name, suffix: name not in lost)
        for rule in (_any_half, _refuses_leftovers, _refuses_two_alphas, _wants_out_or_mlp, _wants_one_rank):
            yield from rule(loader, file)
        yield from _loses_alphas(file)
    yield from _knows_no_layer(loader, file)
    yield from ignores_unknown(loader, file)


def _any_half(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """An error with kohya's names; with its own names no error, but numbers at random."""
    kinds = [KINDS[kind] for kind in loader.kinds]
    yield from incomplete(
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
        yield Finding("no", f"ValueError, {what}: {shown(left)}", left)


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
            reason = f"ValueError, of {component} there is neither out_proj nor mlp: {shown(modules)}"
            yield Finding("no", reason, file.keys_of(modules))
        elif lost:
            reason = f"it ignores attention of {component}, which has no out_proj: {shown(lost)}"
            yield Finding("partly", reason, file.keys_of(lost))


def _wants_one_rank(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """The projection of the second text encoder gets the rank that most of its layers have."""
    ranks = _ranks(_by_component(file).get("text_encoder_2", {}))
    own = ranks.pop(TEXT_PROJECTION, None)
    if own and ranks and own != (usual := Counter(ranks.values()).most_common(1)[0][0]):
        reason = f"RuntimeError, text_projection has rank {own} and the text encoder {usual}"
        yield Finding("no", reason, file.keys_of([TEXT_PROJECTION]))


def _loses_alphas(file: LoraFile) -> Iterator[Finding]:
    """It looks for an alpha under a name that attention does not have, and takes the most common one of the component.

    The same where a module has none. With transformers 5, it misses all alphas of the first text encoder.
    """
    for component, modules in _by_component(file).items():
        ranks = _ranks(modules)
        bare = [name for name in ranks if ".alpha" not in modules[name]]
        if not ranks or len(bare) == len(ranks):
            continue  # no alpha at all is scale 1, as it should be
        alphas = {name: file.alphas[name] for name in ranks if name in file.alphas} if file.alphas else {}
        if not alphas:
            if bare:
                yield Finding("partly", f"modules without an alpha get that of others in {component}: {shown(bare)}")
            continue
        usual = max(Counter(alphas.values()).items(), key=lambda item: item[1])[0]  # of equals the first, as there
        wrong = [name for name, alpha in alphas.items() if alpha != usual and _alpha_is_missed(component, name)]
        wrong += [name for name in bare if ranks[name] != usual]
        if wrong:
            count = f"{len(wrong):,} of {len(ranks):,} modules of {component}"
            reason = f"alpha varies, and {count} get the most common one, {usual:g}, without an error"
            yield Finding("partly", f"{reason}: {shown(wrong)}")


def _ranks(modules: Mapping[str, Module]) -> dict[str, int]:
    downs = {name: module.get(".lora_down.weight") for name, module in modules.items()}
    return {name: down.shape[0] for name, down in downs.items() if down and down.shape}


def _alpha_is_missed(component: str, name: str) -> bool:
    return component == "text_encoder" or bool(re.search(r"_attn[12]?_", name))


def _wants_lora_in_keys(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    if nameless := tuple(key for key in file.keys_of() if "lora" not in key):
        yield Finding("no", f'ValueError, each key must have "lora" in it: {shown(nameless)}', nameless)


def _wants_text_attention(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    for component, modules in _by_component(file).items():
        peft = any(KINDS["PEFT"].fits(module) for module in modules.values())
        if peft and component.startswith("text_encoder") and not any(".self_attn." in name for name in modules):
            reason = f"ValueError, {component} has no attention in it: {shown(modules)}"
            yield Finding("no", reason, file.keys_of(modules))


def _knows_no_layer(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """It passes over a layer that it does not know; to know none of a component is an error."""
    unmatched = set(loader.unmatched(file))
    for component, modules in _by_component(file).items():
        keys = file.keys_of(modules)
        if component in ("unet", "text_encoder", "text_encoder_2") and unmatched.issuperset(keys):
            yield Finding("no", f"an error, it knows no layer of {component}: {shown(keys)}", keys)


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


def alphas_unread(file: LoraFile) -> str:
    return "not checked: whether alpha varies from module to module" if file.alphas is None else ""
