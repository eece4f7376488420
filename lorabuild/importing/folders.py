"""Translate where the images are: folders 10_ember of sd-scripts, and data set files with their levels of settings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorabuild.errors import near_miss
from lorabuild.importing.arguments import DEFAULTS, OF_DATASETS, SAME
from lorabuild.importing.draft import MISSING, Draft, Entry
from lorabuild.importing.told import Told, typed
from lorabuild.manifest.keys import KEYS

KINDS = {name: kind for kind, names in SAME["dataset"] for name in names.split()}
OF_SUBSET = {
    **{key: KINDS[key] for key in KEYS["dataset.subset"]["result"].split() if key in KINDS},
    **{"image_dir": "text", "num_repeats": "int", "is_reg": "flag", "class_tokens": "text"},
}
RECIPE_KINDS = {name: kind for kind, names in SAME["recipe"] for name in names.split()}
OF_FOLDER = ("image_dir", "num_repeats", "is_reg", "class_tokens")  # said of folders, not of the whole data set
NOTHING = {"flag": False, "int": 0, "float": 0.0, "share": 0}  # what a setting of a kind is where nobody sets it
# Keys of [[datasets]] that are settings of the training here.
OF_RECIPE = {
    "batch_size": "train_batch_size",
    "validation_split": "validation_split",
    "validation_seed": "validation_seed",
}


def seen_from(path: str, folder: Path, manifest: Path | None) -> str:
    """A path as the manifest's folder sees it. Without one, and where nothing is there, it stays or becomes absolute."""
    there = folder / os.path.expanduser(path)
    if not there.exists():
        return path
    whole = os.path.abspath(there)
    repository = manifest and os.path.abspath(manifest.parent.parent)
    if not repository or not Path(whole).is_relative_to(repository):
        return whole
    return os.path.relpath(whole, manifest)


def folders(draft: Draft, told: Told, manifest: Path | None) -> None:
    """Set the folders of a data set; `manifest` is the folder that the manifest will be in, if that is known."""
    if told.datasets is not None:
        for key in ("train_data_dir", "reg_data_dir"):
            if key in told.arguments:
                told.note(key, told.arguments[key], "sd-scripts does not read it beside a data set file")
                draft.tables["dataset"].pop(key, None)
        _of_file(draft, told, manifest)
    else:
        _of_arguments(draft, told, manifest)
    if not draft.lists["dataset.subset"] and "train_data_dir" not in draft.tables["dataset"]:
        entry = Entry("images", f"{MISSING}: the folder of images and captions, seen from this file")
        draft.lists["dataset.subset"].append({"image_dir": entry})


def _of_arguments(draft: Draft, told: Told, manifest: Path | None) -> None:
    for key in ("train_data_dir", "reg_data_dir"):
        if not (given := told.arguments.get(key)):
            draft.tables["dataset"].pop(key, None)
            continue
        subsets = list(_numbered(told, key, given, manifest))
        if subsets:
            draft.lists["dataset.subset"] += subsets
            draft.tables["dataset"].pop(key, None)
            told.notes.append(f"{key} = {given}: its folders stand in [[dataset.subset]]")
        elif "in_json" in told.arguments:
            repeats = told.arguments.get("dataset_repeats", 1)
            entry = {"image_dir": Entry(seen_from(given, told.folder, manifest)), "num_repeats": Entry(max(repeats, 1))}
            draft.lists["dataset.subset"].append(entry)
            draft.tables["dataset"].pop(key, None)
        else:
            there = seen_from(given, told.folder, manifest)
            said = (
                ""
                if (told.folder / given).is_dir()
                else "not found here: seen from this file; it holds folders 10_name"
            )
            draft.set("dataset", key, there, said)


def _numbered(told: Told, key: str, given: str, manifest: Path | None) -> Iterator[dict[str, Entry]]:
    """The folders 10_ember in a folder, in the order of their names, as sd-scripts takes them."""
    folder = told.folder / os.path.expanduser(given)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        number, sign, name = path.name.partition("_")
        if not path.is_dir():
            continue
        if not sign or not re.fullmatch(r"[0-9]+", number) or int(number) < 1:
            told.notes.append(f"{key}: {path.name}: sd-scripts leaves a folder out that is not named 10_name")
            continue
        subset = {"image_dir": Entry(seen_from(str(path), told.folder, manifest)), "num_repeats": Entry(int(number))}
        if key == "reg_data_dir":
            subset["is_reg"] = Entry(True)
        if name:
            subset["class_tokens"] = Entry(name, "the caption of an image that has none")
        yield subset


def _of_file(draft: Draft, told: Told, manifest: Path | None) -> None:
    """A data set file. Of each setting the folder's counts, else its data set's, else [general]'s, else the argument."""
    datasets = [_checked(told, one, "datasets") for one in told.datasets or ()]
    general = _checked(told, told.general, "general")
    first = datasets[0] if datasets else {}
    for key, kind in KINDS.items():
        if (found := _first(key, first, general)) is not None and not key.endswith("_dir"):
            _set(draft, told, "dataset", key, kind, found)
    for key, name in OF_RECIPE.items():
        if (found := _first(key, first, general)) is not None:
            _set(draft, told, "recipe", name, RECIPE_KINDS[name], found)
    usual = {key: DEFAULTS["dataset"].get(key, NOTHING.get(kind)) for key, kind in OF_SUBSET.items()}
    whole = {key: draft.value("dataset", key, usual[key]) for key in OF_SUBSET if key not in OF_FOLDER}
    for number, dataset in enumerate(datasets, 1):
        for key in (*KINDS, *OF_RECIPE):
            mine = _first(key, dataset, general)
            if key not in OF_SUBSET and number > 1 and mine != _first(key, first, general):
                told.note(
                    f"datasets {number}: {key}", mine, "lorabuild has one data set, whose settings are the first one's"
                )
                told.warnings.append(f"datasets {number}: {key}: only the first data set's is taken over")
        for subset in dataset.get("subsets", []):
            draft.lists["dataset.subset"].append(_subset(told, subset, dataset, general, whole, manifest))


def _subset(
    told: Told, subset: Mapping, dataset: Mapping, general: Mapping, whole: Mapping[str, Any], manifest: Path | None
) -> dict[str, Entry]:
    subset = _checked(told, subset, "datasets.subsets")
    found: dict[str, Entry] = {}
    if not subset.get("image_dir"):
        found["image_dir"] = Entry("images", f"{MISSING}: the folder of images and captions, seen from this file")
    for key, kind in OF_SUBSET.items():
        value = _first(key, subset, dataset, general)
        if value is None and key == "num_repeats":
            value = told.arguments.get("dataset_repeats")
        if value is None or (value == whole.get(key, False) and key != "num_repeats"):
            continue
        try:
            value = typed(kind, value)
        except ValueError as error:
            told.note(key, value, f"not understood: {error}")
            continue
        found[key] = Entry(seen_from(value, told.folder, manifest) if key == "image_dir" else value)
    return found


def _checked(told: Told, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A level of settings without what is none; that is told."""
    known = {*KINDS, *OF_SUBSET, *OF_RECIPE, "subsets"}
    for key, value in table.items():
        if key not in known:
            why = OF_DATASETS.get(key) or f"sd-scripts' data sets do not know it{near_miss(key, known)}"
            told.note(f"{where}.{key}", value, why)
            if key not in OF_DATASETS or key in ("metadata_file", "conditioning_data_dir", "face_crop_aug_range"):
                told.warnings.append(f"{where}.{key}: {why}: not taken over")
    return {key: value for key, value in table.items() if key in known}


def _first(key: str, *levels: Mapping[str, Any]) -> Any:
    return next((level[key] for level in levels if level.get(key) is not None), None)


def _set(draft: Draft, told: Told, table: str, key: str, kind: str, value: Any) -> None:
    """A setting of the whole data set. What the command line said of it counts less, and is told."""
    try:
        found = typed(kind, value)
        if key in draft.tables[table] and draft.value(table, key) != found:
            told.note(key, draft.value(table, key), "the data set file goes before it")
        draft.set(table, key, found)
    except ValueError as error:
        told.note(key, value, f"not understood: {error}")
        told.warnings.append(f"{key}: {error}: not taken over")
