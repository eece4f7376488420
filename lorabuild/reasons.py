"""Say why a job is stale, in the user's words: the value that changed, not a digest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FEW = 5  # reasons of one kind that are spelled out; the rest is counted
SMALL = 1e-3  # numbers below it are written as a learning rate is: 3e-4

# key: a setting · file: a file of the user's · base: a part of a base · input: what another job has made ·
# version: of the stage · store, build: what is kept is not there, or not as it was left · anew: asked for
Kind = Literal["key", "file", "base", "input", "version", "store", "build", "anew"]


@dataclass(frozen=True)
class Reason:
    """One cause. `name` is what it is about: "recipe.seed", a file's path, the name of a base, a job.

    `inner` names what differs within a key that holds a table (blocks, arguments), and for an input the key that
    chooses it.
    """

    kind: Kind
    name: str
    text: str
    inner: tuple[str, ...] = ()


INIT = "init"  # the input that a training continues

# By itself no change of content; it is told where keys differ and no other reason is found: captions changed places, say.
RENAMED = Reason("file", "", "files were swapped or renamed")

# What a job depends on beside another setting: worth a word only if it changes by itself.
BESIDE = {
    "resize.header_kib": "[project]: longer or shorter texts in the file's header, which counts for resize.size",
    "told": "other metadata of the source, or tags of the data set, in the file's header, which counts for resize.size",
    "held_out.learns_text": "text encoders are trained, or no longer: captions are encoded otherwise for the held-out loss",
    "held_out.trainings": "[variants]: a training's recipe, which the held-out loss of its files is measured by",
}
SWITCHED = ("held_out",)  # tables of parameters that another setting adds, which tells of it: samples.held_out


def changes(old: Mapping[str, Any], new: Mapping[str, Any], few: int = FEW) -> list[Reason]:
    """What differs between the components of two keys: `recipe.seed: 42 -> 43`, `images/031.png: content`.

    Each with what it is about. `few`: how many files or blocks are spelled out.
    """
    found = []
    if old["version"] != new["version"]:
        found.append(Reason("version", "", f"stage version: {old['version']} -> {new['version']}"))
    for table in sorted({*old["params"], *new["params"]}):
        if table in SWITCHED and not (table in old["params"] and table in new["params"]):
            continue
        found += _values(table, old["params"].get(table, {}), new["params"].get(table, {}), few)
    roles = old["inputs"].keys() & new["inputs"].keys()
    found += _continued(old, new)
    if not found:  # else a setting decides which inputs there are, and that has been told
        found += [Reason("input", "", f"{role}: added") for role in sorted(new["inputs"].keys() - roles)]
        found += [Reason("input", "", f"{role}: removed") for role in sorted(old["inputs"].keys() - roles)]
    for role in sorted(roles):
        if _same_content(role, old, new):
            continue
        found += _input(role, old["inputs"][role], new["inputs"][role], _told(old, role), _told(new, role), few)
    found += _repeats(old, new) + _of_folders(old, new)
    return list(dict.fromkeys(reason for reason in found if reason != RENAMED)) or found


def _same_content(role: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Is it known of a pulled job, which knows no files by name, that it was made from the same images?"""
    digests = [side.get("told", {}).get("digests", {}).get(role, side["inputs"][role]) for side in (old, new)]
    return isinstance(old["inputs"][role], str) and digests[0] == digests[1]


def _told(side: Mapping[str, Any], role: str) -> Sequence[str]:
    """Where an input came from, which is in no key: ["input", job, role], ["base", name], ["file", path], ["text", path, key]."""
    return side.get("told", {}).get("from", {}).get(role) or ()


def _values(name: str, old: Any, new: Any, few: int) -> list[Reason]:
    """One line a manifest key; a table inside a key (weights of blocks) is one line, too."""
    if old == new:
        return []
    if name in BESIDE:
        return _beside(name, old, new)
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [_value(name, old, new)]
    if "." not in name:
        keys = sorted({*old, *new})
        return [reason for key in keys for reason in _values(f"{name}.{key}", old.get(key), new.get(key), few)]
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    parts = [f"{key} {plain(old.get(key))} -> {plain(new.get(key))}" for key in keys]
    return [Reason("key", name, f"{name}: {', '.join(_few(parts, 'more', few))}", tuple(keys))]


def _continued(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Reason]:
    """A LoRA that the training continues where it continued none, or no longer."""
    was, now = (_told(side, INIT)[1:2] for side in (old, new))
    if (INIT in old["inputs"]) == (INIT in new["inputs"]):
        return []
    return [_value("recipe.init", *("".join(one).removeprefix("train:") or None for one in (was, now)))]


def _value(name: str, old: Any, new: Any) -> Reason:
    return Reason("key", name, f"{name}: {plain(old)} -> {plain(new)}")


def _input(role: str, old: Any, new: Any, was: Sequence[str], now: Sequence[str], few: int) -> list[Reason]:
    if old == new:
        return []
    if role in BESIDE:
        return _beside(role, old, new)
    if isinstance(old, dict) and isinstance(new, dict):
        return _files(old, new, few)
    key = "recipe.init" if role == INIT else "project.source"
    match was, now:
        case ["base", before], ["base", after] if before != after:
            return [_value("project.base", before, after)]  # one line for all parts of the base
        case ["file", before], ["file", after] if before != after:
            return [_value(key, before, after)]
        case ["text", before, _], ["text", after, key] if before != after:
            return [_value(key, before, after)]
        case _, ["text", path, key]:
            return [Reason("file", path, f"{path}: content", (key,))]
        case _, ["base", name]:
            return [Reason("base", name, f"base {name}: {role}: content")]
        case ["input", *before], ["input", job, made] if before != [job, made]:
            chosen = key if role == INIT else "resize.step"
            return [Reason("input", job, f"{role}: {' '.join(before)} -> {job} {made}", (chosen,))]
        case _, ["input", job, _]:
            return [Reason("input", job, f"{job if job.startswith(f'{role}:') else f'{role} of {job}'}: content")]
        case _, ["file", path]:
            return [Reason("file", path, f"{path}: content", (key,))]
    return [Reason("input", "", f"{role}: content")]


def _beside(name: str, old: Any, new: Any) -> list[Reason]:
    return [] if old is None or new is None else [Reason("key", "", BESIDE[name])]


def _files(old: Mapping[str, str], new: Mapping[str, str], few: int) -> list[Reason]:
    """Changed, added and removed files; a file that only has another name is none of them."""
    added, removed = new.keys() - old.keys(), old.keys() - new.keys()
    told = [(name, "content") for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    same = {old[name] for name in removed} & {new[name] for name in added}
    told += [(name, "added") for name in sorted(added) if new[name] not in same]
    told += [(name, "removed") for name in sorted(removed) if old[name] not in same]
    reasons = [Reason("file", name, f"{name}: {what}") for name, what in told]
    if not reasons and added:
        return [RENAMED]
    if len(reasons) <= few + 1:
        return reasons
    return [*reasons[:few], Reason("file", "", f"and {len(reasons) - few} more files")]


def _repeats(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Reason]:
    """Folders that an epoch shows more often, or less; one that is new or gone has been told by its files."""
    was, now = (side.get("told", {}).get("repeats", {}) for side in (old, new))
    changed = [folder for folder in now if was.get(folder, now[folder]) != now[folder]]
    texts = {folder: f"dataset.subset.num_repeats: {folder} {was[folder]} -> {now[folder]}" for folder in changed}
    return [Reason("key", "dataset.subset.num_repeats", text, (folder,)) for folder, text in texts.items()]


def _of_folders(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Reason]:
    """Settings of folders that differ from their data set's, of folders that are there before and after."""
    known = old.get("told", {}).get("repeats", {}).keys() & new.get("told", {}).get("repeats", {}).keys()
    reasons = []
    for folder in sorted(known):
        was, now = (side.get("told", {}).get("settings", {}).get(folder, {}) for side in (old, new))
        for key in sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key)):
            text = f"dataset.subset.{key}: {folder} {plain(was.get(key))} -> {plain(now.get(key))}"
            reasons.append(Reason("key", f"dataset.subset.{key}", text, (folder,)))
    return reasons


def _few(lines: list[str], rest: str, few: int) -> list[str]:
    return lines if len(lines) <= few + 1 else [*lines[:few], f"and {len(lines) - few} {rest}"]


def plain(value: Any) -> str:
    """A value as a line shows it: 3e-4."""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    if isinstance(value, float) and abs(value) < SMALL:
        from decimal import Decimal

        return f"{Decimal(repr(value)).normalize():e}"
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
