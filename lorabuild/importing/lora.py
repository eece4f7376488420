"""Read how a LoRA was made out of its own header: lorabuild's own record, else what sd-scripts wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError
from lorabuild.header import Header
from lorabuild.importing.base import UNKNOWN, Base, found_base
from lorabuild.importing.draft import MISSING, Draft, Entry
from lorabuild.importing.kohya import tell_metadata
from lorabuild.importing.told import Told
from lorabuild.importing.translate import settled, translated
from lorabuild.names import BLOCKS
from lorabuild.training.schedules import DEFAULT, KEY_DEFAULTS

OURS = "lorabuild."
# modelspec's key -> ours in [project]
PROJECT = {
    "modelspec.trigger_phrase": "trigger",
    "modelspec.author": "author",
    "modelspec.description": "description",
    "modelspec.license": "license",
    "modelspec.tags": "tags",
}
NOT_IN_FILE = (
    "Not in a file, so to be set anew where they are wanted: [project] kind; the settings of single folders; snapshots "
    "(save_every_*, keep); gradient_checkpointing and processes; [samples]; [check]; variants."
)
# Of phases the recipe's own keys only repeat the first one's.
REPEATED = (
    "lr_scheduler",
    "lr_scheduler_type",
    "lr_scheduler_args",
    "lr_decay_steps",
    "lr_warmup_steps",
    *KEY_DEFAULTS,
)
SHOWN_TAGS = 12


def of_lora(header: Header, file: str, known: Mapping[str, Any], base: str | None) -> Draft:
    """The manifest of a LoRA by its metadata. Raises JobError for one that says nothing of its making."""
    said = header.metadata
    if f"{OURS}stages" in said or f"{OURS}resize" in said or f"{OURS}chop" in said:
        draft = _of_ours(said, file, known, base)
    elif any(key.startswith("ss_") for key in said):
        draft = _of_others(said, file, known, base)
    else:
        raise JobError(f"{file}: its metadata says nothing of how it was made (no ss_* and no {OURS}* key)")
    if tags := _frequent_tags(said):
        draft.notes.append(f"tags of the captions, most frequent first (the trigger may be one): {tags}")
    return draft


def _of_ours(said: Mapping[str, str], file: str, known: Mapping[str, Any], base: str | None) -> Draft:
    """A file that lorabuild made: its record is the resolved manifest, as far as it shaped the file."""
    tables = {key.removeprefix(OURS): _table(text) for key, text in said.items() if key.startswith(OURS)}
    trained = "train" in tables.get("stages", {})
    draft = Draft(head=[f"From the metadata of {Path(file).name}, which lorabuild {'trained' if trained else 'made'}."])
    named = said.get("ss_sd_model_name")
    name = base or named or UNKNOWN
    draft.set("project", "base", name, "" if name != UNKNOWN else f"{MISSING}: a base of lorabuild.toml")
    if name not in known and name != UNKNOWN:
        settings = {key: value for key, value in tables.get("base", {}).items() if value != "epsilon"}
        draft.base_lines = Base(name, {"file": f"{name}.safetensors", **settings}).lines
    _project(draft, said)
    if trained:
        _dataset(draft, said, tables.get("dataset", {}))
        _recipe(draft, tables.get("recipe", {}))
        if "init" in _dict(tables.get("inputs", {}).get("train")):
            draft.set("recipe", "init", "project-or-file.safetensors", f"{MISSING}: the LoRA that this one continued")
    else:
        draft.set("project", "source", "source.safetensors", f"{MISSING}: the LoRA file that this one was made of")
        if precision := tables.get("recipe", {}).get("save_precision"):
            draft.set("recipe", "save_precision", precision)
        draft.notes.append("ss_*: of the LoRA that it was made of: `lorabuild import` that file for its recipe")
    _finishing(draft, said, tables)
    draft.notes += [
        f"{OURS}{key}: digests, versions and figures of that build"
        for key in ("inputs", "stages", "loss")
        if key in tables
    ]
    draft.notes.append(NOT_IN_FILE)
    return settled(draft)


def _project(draft: Draft, said: Mapping[str, str]) -> None:
    for key, name in PROJECT.items():
        if key in said:
            draft.set("project", name, said[key])
    title = said.get("modelspec.title")
    if title and title != said.get("ss_output_name"):
        draft.set("project", "title", title)


def _dataset(draft: Draft, said: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        draft.set("dataset", key, value)
    for key, is_reg in (("ss_dataset_dirs", False), ("ss_reg_dataset_dirs", True)):
        for folder in map(_dict, _table(said.get(key, "{}")).values()):
            subset = {
                "image_dir": Entry("images", f"{MISSING}: the folder of {folder.get('img_count', '?')} images"),
                "num_repeats": Entry(folder.get("n_repeats", 1)),
            }
            draft.lists["dataset.subset"].append(subset | ({"is_reg": Entry(True)} if is_reg else {}))
    if not draft.lists["dataset.subset"]:
        draft.lists["dataset.subset"].append(
            {"image_dir": Entry("images", f"{MISSING}: the folder of images and captions")}
        )


def _recipe(draft: Draft, recipe: Mapping[str, Any]) -> None:
    phases = [one for one in recipe.get("phases") or [] if isinstance(one, dict)]
    for key, value in recipe.items():
        if key in ("phases", "network_args") or value is None or (phases and key in REPEATED):
            continue
        draft.set("recipe", key, value)
    if draft.value("recipe", "lr_scheduler") == DEFAULT and not recipe.get("lr_scheduler_type"):
        draft.tables["recipe"].pop("lr_scheduler_args", None)  # it takes none
    for key, value in _dict(recipe.get("network_args")).items():
        if value is not None:
            draft.set("recipe.network_args", key, value)
    for phase in phases:
        found = {key: Entry(value) for key, value in phase.items() if value is not None}
        if phase.get("lr_scheduler") == DEFAULT and not phase.get("lr_scheduler_type"):
            found.pop("lr_scheduler_args", None)
        draft.lists["recipe.phases"].append(found)


def _finishing(draft: Draft, said: Mapping[str, str], tables: Mapping[str, Any]) -> None:
    """[resize] and [chop]."""
    resize = {key: value for key, value in tables.get("resize", {}).items() if key != "header_kib"}
    for key, value in resize.items():
        draft.set("resize", key, value)
    steps = said.get("ss_steps", "")
    if resize and steps.isdecimal() and draft.value("recipe", "max_train_steps") not in (None, int(steps)):
        draft.set("resize", "step", int(steps))
    chop = tables.get("chop", {})
    if weights := _dict(chop.get("keep")):
        kept = [block for block in BLOCKS if weights.get(block)]
        if len(kept) < len(BLOCKS):
            draft.set("chop", "keep", kept)
        if scaled := {block: weights[block] for block in kept if weights[block] != 1}:
            draft.set("chop", "weights", scaled)
        if not draft.tables["chop"]:
            draft.set("chop", "keep", ["*"])
    if chop.get("allow_empty"):
        draft.set("chop", "allow_empty", True)


def _of_others(said: Mapping[str, str], file: str, known: Mapping[str, Any], base: str | None) -> Draft:
    told = Told(Path.cwd(), trains=True)
    told.asked = "not in the file: sd-scripts' default"
    tell_metadata(told, said, file)
    entry = {"digest": digest} if (digest := said.get("ss_new_sd_model_hash")) else {}
    name = said.get("ss_sd_model_name")
    chosen = Base(base) if base else found_base(name, known, entry) if name else None
    draft = translated(told, chosen)
    draft.head.insert(0, f"From the metadata of {Path(file).name}, which lorabuild did not make.")
    _project(draft, said)
    if vector := said.get("block_vector_string"):
        draft.set("chop", "vector", vector)
    return settled(draft)


def _frequent_tags(said: Mapping[str, str]) -> str:
    counts: dict[str, int] = {}
    for tags in map(_dict, _table(said.get("ss_tag_frequency", "{}")).values()):
        for tag, count in tags.items():
            if isinstance(count, int):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_TAGS]
    return ", ".join(f"{tag} {count}" for tag, count in most)


def _table(text: str) -> dict[str, Any]:
    """The table that a header's text holds; an empty one where it is none."""
    try:
        return _dict(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
