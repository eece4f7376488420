"""Say why a job is stale, in the user's words: the value that changed, not a digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FEW = 5  # reasons of one kind that are spelled out; the rest is counted

# What a job depends on beside another setting: worth a word only if it changes by itself.
BESIDE = {
    "resize.header_kib": "[project]: longer or shorter texts in the file's header, which counts for resize.size",
    "told": "other metadata of the source, or tags of the data set, in the file's header, which counts for resize.size",
}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[str]:
    """What differs between the components of two keys: `recipe.seed: 42 -> 43`, `images/031.png: content`.

    `names` are what messages call the inputs, by role.
    """
    found = []
    if old["version"] != new["version"]:
        found.append(f"stage version: {old['version']} -> {new['version']}")
    for table in sorted({*old["params"], *new["params"]}):
        found += _values(table, old["params"].get(table), new["params"].get(table))
    for role in sorted({*old["inputs"], *new["inputs"]}):
        found += _input(role, (names or {}).get(role, role), old["inputs"].get(role), new["inputs"].get(role))
    return found


def _values(name: str, old: Any, new: Any) -> list[str]:
    """One line a manifest key; a table inside a key (weights of blocks) is one line, too."""
    if old == new:
        return []
    if name in BESIDE:
        return _beside(name, old, new)
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [f"{name}: {_plain(old)} -> {_plain(new)}"]
    if "." not in name:
        return [line for key in sorted({*old, *new}) for line in _values(f"{name}.{key}", old.get(key), new.get(key))]
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    parts = [f"{key} {_plain(old.get(key))} -> {_plain(new.get(key))}" for key in keys]
    return [f"{name}: {', '.join(_few(parts, 'more'))}"]


def _input(role: str, name: str, old: Any, new: Any) -> list[str]:
    if old == new:
        return []
    if role in BESIDE:
        return _beside(role, old, new)
    if isinstance(old, dict) and isinstance(new, dict):
        return _files(old, new)
    return [f"{name}: {'now used' if old is None else 'no longer used' if new is None else 'content'}"]


def _beside(name: str, old: Any, new: Any) -> list[str]:
    return [] if old is None or new is None else [BESIDE[name]]


def _files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Changed, added and removed files; a file that only has another name is none of them."""
    added, removed = new.keys() - old.keys(), old.keys() - new.keys()
    lines = [f"{name}: content" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    same = {old[name] for name in removed} & {new[name] for name in added}
    lines += [f"{name}: added" for name in sorted(added) if new[name] not in same]
    lines += [f"{name}: removed" for name in sorted(removed) if old[name] not in same]
    if not lines:
        lines = ["files were swapped or renamed"]
    return _few(lines, "more files")


def _few(lines: list[str], rest: str) -> list[str]:
    return lines if len(lines) <= FEW + 1 else [*lines[:FEW], f"and {len(lines) - FEW} {rest}"]


def _plain(value: Any) -> str:
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
