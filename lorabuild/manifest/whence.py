"""Find the file and line where a value stands now, through `extends`, variants and lorabuild.toml."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from lorabuild.errors import ConfigError
from lorabuild.manifest.layers import KeyPath, Layer, Reader
from lorabuild.manifest.matrix import axes, part, part_name, swept
from lorabuild.manifest.merge import Merged, merge, variant
from lorabuild.manifest.repository import SHARED_FILES, Repository
from lorabuild.manifest.targets import PARTS

Spot = tuple[str, int]  # file as messages call it, line from 1

# Key of a job's parameters -> where else the manifest may say it: the first that is written counts.
ELSEWHERE: dict[str, Sequence[KeyPath]] = {
    "chop.keep": (("chop", "vector"), ("chop", "weights")),
    "recipe.unet_lr": (("recipe", "network_train_text_encoder_only"), ("recipe", "learning_rate")),
    "recipe.text_encoder_lr": (("recipe", "network_train_unet_only"), ("recipe", "learning_rate")),
    "recipe.network_args.dropout": (("recipe", "network_dropout"),),
    "recipe.network_alpha": (("recipe", "network_dim"),),
    "recipe.network_args.conv_dim": (("recipe", "network_dim"),),
    "recipe.network_args.conv_alpha": (("recipe", "network_alpha"), ("recipe", "network_dim")),
    "spectrum.subspace": (("resize", "subspace"),),
    "resize.header_kib": (("project",),),
}


class Whence:
    """The places of a repository's values. Each file is read and parsed once, when it is first asked for."""

    def __init__(self, repository: Repository):
        self._repository = repository
        self._reader = Reader(repository.root)
        self._merged: dict[str, Merged] = {}

    def key(self, target: str, name: str, inner: Sequence[str] = ()) -> Spot | None:
        """Where the key `name` ("recipe.unet_lr") of a project, `project@variant` or base is written.

        `inner` names what differs in it, if it is a table. None for what nobody wrote: a default.
        """
        name = name.removeprefix("held_out.")  # "held_out.recipe": the recipe, as a measurement reads it
        table, _, rest = name.partition(".")
        merged = self._of(target)
        if table == "base":  # a setting of the base, in lorabuild.toml
            return _first(self._shared(), [("bases", self._base(target), rest)])
        if name.startswith("dataset.subset."):
            return _first(merged, self._subsets(target, merged, inner, name.rpartition(".")[2]))
        return _first(merged, _ways(merged, name, inner))

    def subset(self, target: str, number: int, key: str) -> Spot | None:
        """Where a key of a project's [[dataset.subset]] is written; subsets are numbered from 0."""
        return _first(self._of(target), [("dataset", "subset", number, key)])

    def base(self, name: str, key: str = "file") -> Spot | None:
        """Where a key of a base is written in lorabuild.toml, or else where the base is named."""
        return _first(self._shared(), [("bases", name, one) for one in (key, "file", "builtin")])

    def _base(self, target: str) -> str:
        """The base of a project; a target that is none is a base itself."""
        project = self._repository.projects.get(target.partition("@")[0])
        return project.settings["project"]["base"] if project else target

    def _shared(self) -> Merged:
        try:
            layers = [self._reader.read(self._repository.root / name) for name in SHARED_FILES]
            return merge(layer for layer in layers if layer)
        except ConfigError:  # edited since the jobs were made of it
            return Merged({}, {})

    def _of(self, target: str) -> Merged:
        """The settings of a project or variant, with their places; nothing for a base."""
        if target not in self._merged:
            name, _, changed = target.partition("@")
            try:
                whole = merge(self._layers(name))
                self._merged[target] = self._varied(name, whole, changed) if changed else whole
            except (ConfigError, KeyError, ValueError):  # edited since the jobs were made of it
                self._merged[target] = Merged({}, {})
        return self._merged[target]

    def _varied(self, name: str, whole: Merged, changed: str) -> Merged:
        """The project with what a variant says, or with the part of a combination that a job sees."""
        if changed in whole.values.get("variants", {}):
            return variant(whole, changed)
        parts = {
            part_name(point, tables): part(point, tables)
            for point in self._repository.projects[name].swept.values()
            for tables in PARTS.values()
        }
        return swept(whole, parts[changed], axes(whole)[0])

    def _layers(self, name: str) -> list[Layer]:
        project = self._repository.projects.get(name)
        manifest = self._reader.read(project.manifest) if project else None
        return self._reader.stack(manifest)[0] if manifest else []

    def _subsets(self, target: str, merged: Merged, folders: Sequence[str], key: str) -> Iterator[KeyPath]:
        """The subsets of these image folders, as paths seen from the repository."""
        root, project = self._repository.root, self._repository.projects[target]
        for number, subset in enumerate(merged.values.get("dataset", {}).get("subset", ())):
            whole = Path(os.path.normpath(project.folder / subset["image_dir"]))
            if (whole.relative_to(root) if whole.is_relative_to(root) else whole).as_posix() in folders:
                yield ("dataset", "subset", number, key)


def _ways(merged: Merged, name: str, inner: Sequence[str]) -> Iterator[KeyPath]:
    """The paths where a key may be written, the likeliest first."""
    path = tuple(name.split("."))
    if name == "chop.keep" and _scaled(merged, inner):
        yield ("chop", "weights")
    for key in inner:
        yield (*path, key)
        yield from ELSEWHERE.get(f"{name}.{key}", ())
    yield path
    yield from ELSEWHERE.get(name, ())


def _scaled(merged: Merged, blocks: Sequence[str]) -> bool:
    """Do [chop] weights speak of one of these blocks?"""
    weights = merged.values.get("chop", {}).get("weights", {})
    return any(block in weights or (block.startswith("TE") and "TE" in weights) for block in blocks)


def _first(merged: Merged, paths: Iterable[KeyPath]) -> Spot | None:
    """Where the first of these paths that somebody wrote stands."""
    for path in paths:
        if tuple(takewhile(lambda part: not isinstance(part, int), path)) in merged.origin:
            place = merged.place(path)
            return place.layer.file, place.line
    return None
