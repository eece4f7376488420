"""Make a manifest of all that was told: keys, sd-scripts' defaults that are not lorabuild's, and a line for the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorabuild.importing.arguments import ARGUMENTS, DEFAULTS, MATTERS, UNNEEDED_BY
from lorabuild.importing.base import UNKNOWN, Base
from lorabuild.importing.draft import MISSING, Draft, Place
from lorabuild.importing.folders import folders, seen_from
from lorabuild.importing.network import LYCORIS, network
from lorabuild.importing.told import Told

# Paths: seen from the manifest.
PATHS = ("network_weights", "sample_prompts")
OWN = (  # what sd-scripts does that nobody can tell it otherwise; lorabuild can do it, too
    'sd-scripts\' own ways that lorabuild does better unless it is told so, in [dataset]: crop_conditioning = "peer", '
    'latents = "sample", alpha_policy = "drop"; in [samples]: parity = true'
)
MISREAD = "sd-scripts' default: what was told was not understood"
# What stays also where `check` finds fault with it: without it another LoRA would be trained, and nobody would know.
KEPT = (
    "base", "source", "image_dir", "train_data_dir", "reg_data_dir", "resolution", "network_module", "network_dim",
    "algo", "preset", "optimizer_type", "lr_scheduler", "lr_scheduler_type", "learning_rate", "unet_lr",
    "text_encoder_lr", "max_train_steps", "max_train_epochs", "train_batch_size", "network_weights", "prompts",
)  # fmt: skip


def translated(told: Told, base: Base | None, manifest: Path | None = None) -> Draft:
    """The manifest of what was told, for a base; `manifest` is the folder that it will be in, None if that is open."""
    draft = Draft()
    _base(draft, base)
    for name, value in told.arguments.items():
        _taken(draft, told, name, value)
    for special in SPECIAL:
        special(draft, told)
    if told.trains:
        network(draft, told)
    _paths(draft, told, manifest)
    folders(draft, told, manifest)
    _defaults(draft, told)
    for table in ("resize", "chop"):
        for key, value in (getattr(told, table) or {}).items():
            draft.set(table, key, value)
    draft.notes += [*told.notes, OWN] if told.trains else told.notes
    draft.warnings += told.warnings
    return draft


def _base(draft: Draft, base: Base | None) -> None:
    if base is None:
        draft.set("project", "base", UNKNOWN, f"{MISSING}: a base of lorabuild.toml")
        return
    draft.set("project", "base", base.name)
    draft.base_lines = base.lines


def _taken(draft: Draft, told: Told, name: str, value: Any) -> None:
    argument = ARGUMENTS[name]
    if name == "network_args":
        return  # a table of its own
    if argument.key:
        draft.set(argument.table, argument.key, value)
        return
    if name == "dataset_repeats" and told.datasets is not None:
        told.note(name, value, "it is num_repeats of the folders that the data set file says nothing of")
        return
    told.note(name, value, argument.why)
    if name in MATTERS and value is not False:
        told.warnings.append(f"{name}: {argument.why}: not taken over")


def _defaults(draft: Draft, told: Told) -> None:
    """Write out what sd-scripts does where nothing is said."""
    for table, defaults in DEFAULTS.items():
        if table == "recipe" and not told.trains:
            continue
        for key, value in defaults.items():
            unneeded = UNNEEDED_BY.get(key)
            if key in draft.tables[table] or (unneeded and all(one in draft.tables[table] for one in unneeded)):
                continue
            draft.set(table, key, value, MISREAD if key in told.misread else told.asked)
    if told.trains and "seed" not in draft.tables["recipe"]:
        said = "what was told was not understood" if "seed" in told.misread else "not told: sd-scripts would draw one"
        draft.set("recipe", "seed", 42, said)


def _optimizer(draft: Draft, told: Told) -> None:
    """sd-scripts' old flags for optimizers; an empty name is AdamW."""
    if not draft.value("recipe", "optimizer_type"):
        draft.tables["recipe"].pop("optimizer_type", None)
    for flag, name in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if told.arguments.get(flag):
            draft.set("recipe", "optimizer_type", name, flag)
    for key in ("optimizer_args", "lr_scheduler_args"):
        if draft.value("recipe", key) == {}:
            del draft.tables["recipe"][key]
    if not draft.value("recipe", "lr_scheduler_type", True):
        del draft.tables["recipe"]["lr_scheduler_type"]


def _one_of(table: str, stays: str, goes: str) -> Callable[[Draft, Told], None]:
    """Of two keys that say one thing, the one that counts in sd-scripts."""

    def choose(draft: Draft, told: Told) -> None:
        entries = draft.tables[table]
        if stays in entries and goes in entries:
            told.note(goes, entries.pop(goes).value, f"{stays} goes before it, in sd-scripts, too")

    return choose


def _text_rates(draft: Draft, told: Told) -> None:
    """One rate, or two; LyCORIS takes the first for both text encoders."""
    rates = draft.value("recipe", "text_encoder_lr")
    if not rates:
        draft.tables["recipe"].pop("text_encoder_lr", None)
        return
    lycoris = told.arguments.get("network_module", LYCORIS) == LYCORIS
    if len(rates) > 1 and lycoris:
        told.note(
            "text_encoder_lr", rates, "LyCORIS takes the first for both text encoders; here each may have its own"
        )
    draft.set("recipe", "text_encoder_lr", rates[0] if lycoris or len(rates) == 1 else rates[:2])


def _nothing_drawn(draft: Draft, told: Told) -> None:
    """Without prompts there are no samples."""
    samples = draft.tables["samples"]
    if "prompts" not in samples:
        for key in list(samples):
            told.note(key, samples.pop(key).value, "no pictures without sample_prompts")


def _masks(draft: Draft, told: Told) -> None:
    """masked_loss says again what alpha_mask does; where that was not told, there are no masks."""
    entry = draft.tables["recipe"].get("masked_loss")
    if entry and not entry.value:
        told.note("masked_loss", False, "alpha_mask says it here")
        del draft.tables["recipe"]["masked_loss"]
    elif entry and not draft.value("dataset", "alpha_mask") and told.datasets is None:
        told.note("masked_loss", True, "alpha_mask = true says it here, and was not told")
        told.warnings.append("masked_loss: masks are the images' own transparency (alpha_mask): not taken over")
        del draft.tables["recipe"]["masked_loss"]


SPECIAL: tuple[Callable[[Draft, Told], None], ...] = (
    _optimizer,
    _one_of("recipe", "max_train_epochs", "max_train_steps"),
    _one_of("samples", "sample_every_n_epochs", "sample_every_n_steps"),
    _text_rates,
    _nothing_drawn,
    _masks,
)


def _paths(draft: Draft, told: Told, manifest: Path | None) -> None:
    for name in PATHS:
        argument = ARGUMENTS[name]
        if path := draft.value(argument.table, argument.key):
            there = (told.folder / path).exists()
            said = "" if there else "not found here: seen from this file"
            draft.set(argument.table, argument.key, seen_from(path, told.folder, manifest), said)


def settled(draft: Draft) -> Draft:
    """`draft` without what the manifest's rules refuse: that is told in their words. What decides most stays all the same."""
    from lorabuild.errors import ConfigError
    from lorabuild.manifest.check import check_project
    from lorabuild.manifest.layers import Layer

    left: set[str] = set()
    for _ in range(100):  # each round takes a key out
        text = draft.text()
        root = Path("/")
        try:
            check_project([Layer(root, root / "lora.toml", text.encode())], None)
            return draft
        except ConfigError as error:
            places = draft.places()
            found = [(places.get(problem.line), problem.message) for problem in error.problems]
            wrong = [(place, said) for place, said in found if place and place.key not in KEPT]
            for place, said in found:
                if (place is None or place.key in KEPT) and said not in left:
                    left.add(said)
                    draft.warnings.append(f"{said}: `lorabuild check` will say so, too")
            if not wrong:
                return draft
            for place, said in dict(wrong).items():
                draft.refuse(place, _without_name(place, said))
    return draft


def _without_name(place: Place, said: str) -> str:
    return said.removeprefix(f"{place.shown}: ").removeprefix(f"{place.shown}.")
