"""Merge the layers of a manifest, and remember which layer each value came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from lorabuild.manifest.layers import KeyPath, Layer
from lorabuild.training.optimizers import parsed

# Two ways to say one thing: of such keys a later layer's takes the place of an earlier layer's.
EXCLUSIVE = {
    "resize": [("thr", "size", "sv_ratio", "sv_fro", "sv_cumulative")],
    "chop": [("keep", "vector")],
    "recipe": [
        ("max_train_steps", "max_train_epochs", "phases"),
        ("lr_scheduler", "lr_scheduler_type"),
        ("init", "network_weights"),
        ("keep", "save_last_n_steps"),
        ("keep", "save_last_n_epochs"),
    ],
    "samples": [("sample_every_n_steps", "sample_every_n_epochs")],
}
# Arguments of one optimizer mean nothing to another: key, its default, what is dropped when a later layer changes it.
ARGUMENTS = {
    "recipe": [
        ("optimizer_type", "AdamW", "optimizer_args"),
        *(
            ("lr_scheduler", "constant", arguments)
            for arguments in (
                "lr_scheduler_args",
                "lr_scheduler_num_cycles",
                "lr_scheduler_power",
                "lr_scheduler_timescale",
                "lr_scheduler_min_lr_ratio",
                "lr_decay_steps",
            )
        ),
        ("lr_scheduler_type", "", "lr_scheduler_args"),
    ]
}

LISTED = ("recipe", "network_args")  # sd-scripts writes it as a list; a recipe's and a manifest's merge key by key
VARYING = ("recipe", "resize", "chop")  # the tables that a variant may have


@dataclass(frozen=True)
class Place:
    """Where a value stands: a layer, and the path within it."""

    layer: Layer
    path: KeyPath

    @property
    def line(self) -> int:
        return self.layer.line(*self.path)


@dataclass(frozen=True)
class Merged:
    """The values of one or more layers as one table, and the place that each path of it came from."""

    values: dict[str, Any]
    origin: dict[KeyPath, Place]

    def place(self, path: KeyPath) -> Place:
        """Where `path` was written; for what nobody wrote, the last place of the table around it."""
        known = next(path[:length] for length in range(len(path), -1, -1) if path[:length] in self.origin)
        place = self.origin[known]
        return Place(place.layer, (*place.path, *path[len(known) :]))


def merge(layers: Iterable[Layer]) -> Merged:
    """One table of all layers, the last one strongest. Tables merge key by key, lists and arrays of tables replace."""
    merged = Merged({}, {})
    for layer in layers:
        overlay(merged.values, merged.origin, layer.table, (), Place(layer, ()))
    return merged


def variant(merged: Merged, name: str) -> Merged:
    """The project with a variant's tables laid over its own, by the same rules."""
    result = Merged(deepcopy(merged.values), dict(merged.origin))
    tables = result.values.pop("variants")[name]
    result.values.pop("matrix", None)
    for table in VARYING:
        if not isinstance(tables.get(table), dict):
            continue
        where = merged.place(("variants", name, table))
        if not isinstance(result.values.get(table), dict):
            result.values[table] = {}
        overlay(result.values[table], result.origin, tables[table], (table,), where)
        for path, place in merged.origin.items():  # a variant may have layers of its own: ask for each value
            if path[:3] == ("variants", name, table):
                result.origin[path[2:]] = place
    return result


def overlay(values: dict[str, Any], origin: dict[KeyPath, Place], above: Mapping, path: KeyPath, place: Place) -> None:
    """Lay the table `above`, which stands at `place`, over `values`, which stands at `path`; changes both."""
    origin[path] = place
    for key in _replaced(".".join(map(str, path)), values, above):
        _forget(values, origin, (*path, key))
    for key, value in above.items():
        inner, there = (*path, key), Place(place.layer, (*place.path, key))
        if inner == LISTED:
            value = _table(value)
        if isinstance(value, dict):
            if not isinstance(values.get(key), dict):
                _forget(values, origin, inner)
                values[key] = {}
            overlay(values[key], origin, value, inner, there)
        else:
            _forget(values, origin, inner)
            values[key], origin[inner] = value, there


def _table(value: Any) -> Any:
    """sd-scripts' list of "key=value" as the table that it stands for; what is none stays as it is, and is told later."""
    try:
        return parsed(value)
    except ValueError:
        return value


def _replaced(table: str, below: Mapping, above: Mapping) -> list[str]:
    """The keys of `below` that lose their meaning by what `above` says in other keys."""
    lost = []
    for group in EXCLUSIVE.get(table, ()):
        if any(key in above for key in group):
            lost += [key for key in group if key in below and key not in above]
    for key, default, arguments in ARGUMENTS.get(table, ()):
        if arguments in below and key in above and _differ(above[key], below.get(key, default)):
            lost.append(arguments)
    return lost + [arguments for key, _, arguments in ARGUMENTS.get(table, ()) if key in lost and arguments in below]


def _differ(one: Any, other: Any) -> bool:
    return str(one).casefold() != str(other).casefold()  # sd-scripts reads these names without regard to case


def _forget(values: dict[str, Any], origin: dict[KeyPath, Place], path: KeyPath) -> None:
    if path not in origin:
        return
    del values[path[-1]]
    for known in [known for known in origin if known[: len(path)] == path]:
        del origin[known]
