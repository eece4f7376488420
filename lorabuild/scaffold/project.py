"""The manifest of a new project: from a recipe, or with the settings of another project."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabuild.manifest.values import is_file_name
from lorabuild.scaffold.edit import with_value, without
from lorabuild.scaffold.pictures import Pictures
from lorabuild.tomltext import text_written

TINY = "tiny"  # the recipe that makes another one small enough for the embedded base
THR = {True: -2.5, False: -3.55}  # for the tiny base, as in its examples; for SDXL the guide's
# As the examples have it: a character is its name and its forms, a style is learnt by OUT01 before all.
KEEP = {
    "character": '["TE", "INP07", "INP08", "MID*", "OUT*", "!OUT08"]',
    "style": '["TE", "OUT01"]',
    "concept": '["TE", "INP07", "INP08", "MID*", "OUT*"]',
}
OWN = ("source", "title", "description", "tags")  # of [project]: they say what another LoRA is


@dataclass(frozen=True)
class Wanted:
    """What a new project is to be. `images` is the folder as the manifest names it, `pictures` what is in it."""

    name: str
    kind: str | None
    base: str
    is_tiny: bool
    trigger: str | None
    images: str
    pictures: Pictures | None


def manifest(wanted: Wanted, recipes: Sequence[str]) -> str:
    """A manifest with comments, on one or more recipes."""
    extends, kind = recipes_for(recipes, wanted.is_tiny), wanted.kind or "character"
    value = text_written(extends[0]) if len(extends) == 1 else f"[{', '.join(map(text_written, extends))}]"
    line = f"extends = {value}"
    above = f"{line:34}  # recipes/*.toml: how it is trained; what stands here goes over it\n" if extends else ""
    return f"""\
# {wanted.name}. `lorabuild check {wanted.name}` looks it over, `doit {wanted.name}` builds it.
{above}
[project]
kind = {text_written(kind):27}  # character | style | concept
base = {text_written(wanted.base):27}  # the model to train on, of those in lorabuild.toml
{_trigger(wanted)}
# title = "…"                       # also author, description, license, tags: they go into the file

{_images(wanted)}
# What the recipe says can be said otherwise here, for this project alone.
# [recipe]
# network_dim = 8                   # how much each layer can learn
# max_train_steps = 80              # updates of the weights

# Ranks smaller than 10^thr of the base layer's norm are dropped: -3 makes a smaller file than -4.
[resize]
fro_ckpt = 1
thr = {THR[wanted.is_tiny]}

# The blocks that stay: names, globs, negations. To edit this rebuilds in a blink, so try it out.
[chop]
keep = {KEEP[kind]}

# Pictures of what was learnt, by `doit samples:{wanted.name}`: a text file beside this one, a prompt a line.
# [samples]
# prompts = "sample-prompts.txt"
"""


def like(wanted: Wanted, other: bytes, folder: str, was_tiny: bool) -> str:
    """The manifest of another project, for this one. `folder`: that project's, seen from this one's.

    Its recipes stay, unless the one was on the tiny base (`was_tiny`) and the other is not.
    """
    data = _without_title(other)
    table = tomllib.loads(data.decode("utf-8-sig"))
    for key in OWN:
        if key in table.get("project", {}):
            data = without(data, ("project", key))
    if wanted.trigger is None and "trigger" in table.get("project", {}):
        data = without(data, ("project", "trigger"))
    elif wanted.trigger is not None:
        data = with_value(data, ("project", "trigger"), text_written(wanted.trigger))
    if wanted.kind is not None:
        data = with_value(data, ("project", "kind"), text_written(wanted.kind))
    data = with_value(data, ("project", "base"), text_written(wanted.base))
    data = _with_images(data, table.get("dataset", {}), wanted)
    for path in _files(table):
        moved = Path(os.path.normpath(Path(folder, _at(table, path)))).as_posix()
        data = with_value(data, path, text_written(moved))
    extends = table.get("extends", [])
    named = [extends] if isinstance(extends, str) else extends
    if was_tiny != wanted.is_tiny and (fitting := recipes_for(named, wanted.is_tiny)) != named:
        data = with_value(data, ("extends",), f"[{', '.join(map(text_written, fitting))}]")
    return f"# {wanted.name}, with the settings of {Path(folder).name}.\n" + data.decode("utf-8-sig")


def recipes_for(recipes: Sequence[str], is_tiny: bool) -> list[str]:
    """`recipes`, with the one that makes them small for the tiny base, and without it for others."""
    rest = [name for name in recipes if name != TINY]
    return [*rest, TINY] if is_tiny else rest


def _trigger(wanted: Wanted) -> str:
    pictures, comment = wanted.pictures, "# the word in a prompt that calls it"
    if wanted.trigger is not None:
        return f"trigger = {text_written(wanted.trigger):24}  {comment}; the first tag of each caption"
    if pictures and pictures.first_tag:
        guess = text_written(pictures.first_tag)
        return f"# trigger = {guess:22}  {comment} ({guess} begins {pictures.with_tag} of {pictures.captions} captions)"
    return f'# trigger = "…"                     {comment}; the first tag of each caption'


def _images(wanted: Wanted) -> str:
    pictures = wanted.pictures
    extension = pictures.extension if pictures and pictures.captions else ".txt"
    said = f"# Each image has its tags in a file beside it: 01.png, 01{extension}.\n"
    captions = f"caption_extension = {text_written(extension)}\n" if extension != ".txt" else ""
    if pictures and pictures.named:
        return f"{said}[dataset]\ntrain_data_dir = {text_written(wanted.images)}\n{captions}"
    line = f"image_dir = {text_written(wanted.images)}"
    repeats = "# num_repeats = 2                   # show each of them twice as often as those of other folders\n"
    return f"{said}[[dataset.subset]]\n{line:34}  # seen from this file\n{captions}{repeats}"


def _with_images(data: bytes, dataset: dict[str, Any], wanted: Wanted) -> bytes:
    """The one folder of the new project in place of those of the other one."""
    for key in ("train_data_dir", "reg_data_dir"):
        if key in dataset:
            data = without(data, ("dataset", key))
    subsets = dataset.get("subset", [])
    for number in range(len(subsets) - 1, 0, -1):
        data = without(data, ("dataset", "subset", number))
    pictures = wanted.pictures
    if pictures and pictures.named:
        if subsets:
            data = without(data, ("dataset", "subset"))
        data = with_value(data, ("dataset", "train_data_dir"), text_written(wanted.images))
        first: tuple = ("dataset",)
    else:
        first = ("dataset", "subset", 0)
        for key in subsets[0] if subsets else ():
            if key != "image_dir":
                data = without(data, (*first, key))
        data = with_value(data, (*first, "image_dir"), text_written(wanted.images))
    if pictures and pictures.captions and (pictures.extension != ".txt" or "caption_extension" in dataset):
        data = with_value(data, (*first, "caption_extension"), text_written(pictures.extension))
    return data


def _files(table: dict[str, Any]) -> list[tuple[str, str]]:
    """The keys that name files beside the other manifest."""
    found = []
    for path in (("recipe", "init"), ("recipe", "network_weights"), ("samples", "prompts")):
        value = table.get(path[0], {}).get(path[1])
        if isinstance(value, str) and not value.startswith("~") and (path[1] == "prompts" or is_file_name(value)):
            found.append(path)
    return found


def _at(table: dict[str, Any], path: tuple[str, str]) -> str:
    return table[path[0]][path[1]]


def _without_title(data: bytes) -> bytes:
    """A manifest without the comment that opens it, and without a guessed trigger: they are about the other project."""
    lines = [line for line in data.splitlines(keepends=True) if not line.startswith(b"# trigger =")]
    while lines and lines[0].lstrip().startswith(b"#"):
        lines.pop(0)
    return b"".join(lines).lstrip()
