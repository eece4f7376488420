"""Complete and check the settings of a project, or of the whole repository, from their layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorabuild.errors import ConfigError, Problem
from lorabuild.hashing import digest_json
from lorabuild.manifest.explain import MISSING, TOGETHER, Fault, faults
from lorabuild.manifest.keys import result_keys
from lorabuild.manifest.layers import Layer
from lorabuild.manifest.matrix import MATRIX, Axis, axes, is_swept, part_name, point_name, points, shown, swept
from lorabuild.manifest.merge import Merged, merge, variant
from lorabuild.manifest.schema import Manifest, SharedFile, Table, TrainedManifest
from lorabuild.manifest.targets import PARTS
from lorabuild.names import MADE_NAMES, quoted, resolve_chop

DRAWING = ("seed", "mixed_precision", "zero_terminal_snr")  # what of [recipe] counts for pictures


def check_project(layers: Sequence[Layer], bases: Mapping[str, Any] | None, partial: bool = False) -> dict[str, Any]:
    """{"settings": the project's, "variants": {name: settings}, "swept": {variant: {key: value}} of those that [matrix]
    makes, "idle": what the manifest says to no effect}, complete.

    Raises ConfigError with all problems.

    `bases` are those that `base` may name, with their settings; None if they are unknown, as lorabuild.toml is wrong
    itself. `partial`: a layer could not be read, so that a key that is missing, or does not go with another, may be
    none of the user's.
    """
    merged = merge(layers)
    merged.values.pop("extends", None)  # it has done its work
    model = Manifest if _has_source(merged) else TrainedManifest
    settings, found = _validated(model, merged, bases)
    told = {fault.path for fault in found if fault.kind in (MISSING, TOGETHER)}
    named = _variant_names(merged)
    variants = {}
    for name in named:
        variants[name], wrong = _validated(model, variant(merged, name), bases)
        found += [fault for fault in wrong if fault.path not in told]
    varied, problems = axes(merged)
    combined = {point_name(point): point for point in (points(varied) if not problems else ())}
    for name, point in combined.items():
        variants[name], wrong = _validated(model, swept(merged, point, varied), bases)
        found += [_listed(fault) for fault in wrong if fault.path not in told]
    found = [fault for fault in found if not (partial and fault.kind in (MISSING, TOGETHER))]
    problems += [_for_whom(fault, layers[-1]).problem for fault in found] + list(_variant_problems(merged, named))
    if not problems:
        problems += _same(merged, varied, combined, variants) + list(
            _names_taken(merged, named, combined, variants, settings)
        )
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return {"settings": settings, "variants": variants, "swept": combined, "idle": _idle(merged, layers[-1])}


def _listed(fault: Fault) -> Fault:
    """A value of [matrix] that should be a list itself: a list of lists was expected, as its user did not know."""
    key, sign, told = fault.problem.message.partition(": expected a list")
    sign = sign and told.startswith((", got ", " of tables: "))
    if not sign or not key.startswith(f"{MATRIX}."):
        return fault
    short = key.rpartition(".")[2]
    examples = {"keep": '[["TE"], ["TE", "OUT01"]]', "phases": "[[{ … }], [{ … }, { … }]]"}
    said = f"{key}: each value is a list itself, so a list of lists was expected: {short} = {examples.get(short, '[[…], […]]')}"
    return replace(fault, problem=replace(fault.problem, message=said))


def _variant_problems(merged: Merged, named: Sequence[str]) -> Iterator[Problem]:
    """Keys of [variants.<name>.recipe] that a variant cannot have of its own."""
    for name in named:
        recipe = merged.values["variants"][name].get("recipe")
        for key in recipe if isinstance(recipe, dict) else ():
            if said := is_swept(f"recipe.{key}"):
                place = merged.place(("variants", name, "recipe", key))
                yield Problem(place.layer.file, place.line, f"variants.{name}.recipe.{key}: {said}")


def _same(
    merged: Merged, varied: Sequence[Axis], combined: Mapping[str, Any], variants: Mapping[str, Any]
) -> list[Problem]:
    """Values of [matrix] that come to the same files, each told once, at the later one."""
    first: dict[str, Mapping[str, Any]] = {}
    problems: dict[str, Problem] = {}
    for name, point in combined.items():
        other = first.setdefault(_identity(variants[name]), point)
        axis = next((one for one in varied if other[one.key] != point[one.key]), None)
        if axis and axis.key not in problems:
            place = merged.place((*axis.path, axis.values.index(point[axis.key])))
            key = ".".join(map(str, axis.path))
            said = f"{_said(other, point, varied)} and {_said(point, other, varied)} come to the same files"
            if axis.key.startswith("recipe.") and variants[name]["project"]["source"]:
                said += ": nothing is trained here (project.source)"
            problems[axis.key] = Problem(place.layer.file, place.line, f"{key}: {said}")
    return list(problems.values())


def _said(point: Mapping[str, Any], other: Mapping[str, Any], varied: Sequence[Axis]) -> str:
    """The values in which a combination differs from another; by their keys if they are several."""
    differing = [axis for axis in varied if point[axis.key] != other[axis.key]]
    if len(differing) == 1:
        return shown(point[differing[0].key])
    return ", ".join(f"{axis.short} = {shown(point[axis.key])}" for axis in differing)


def _identity(settings: Mapping[str, Any]) -> str:
    """A digest of all that makes the files of a variant."""
    recipe = result_keys(settings, "recipe")
    if settings["project"]["source"]:
        recipe = {"save_precision": recipe["save_precision"]} if settings["resize"] else {}
    chop = settings["chop"] and [resolve_chop(settings["chop"]), settings["chop"]["allow_empty"]]
    return digest_json([recipe, settings["resize"], chop])


def _names_taken(
    merged: Merged,
    named: Sequence[str],
    combined: Mapping[str, Any],
    variants: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Iterator[Problem]:
    """Hand-named variants that have the name of one of the sweep, or whose training's file has that of another's file."""
    made = {*combined, *(part_name(point, tables) for point in combined.values() for tables in PARTS.values())}
    recipe = result_keys(settings, "recipe")
    for name in named:
        said = ""
        if name in made:
            said = "[matrix] makes a variant of this name: rename one"
        elif MADE_NAMES.search(f"-{name}") and result_keys(variants[name], "recipe") != recipe:
            said = f"a training of its own gives it a file as {quoted(name)} of another's would be called: rename it"
        if said:
            place = merged.place(("variants", name))
            yield Problem(place.layer.file, place.line, f"variants.{name}: {said}")


def _for_whom(fault: Fault, manifest: Layer) -> Fault:
    """A clash that is told at the line of a recipe may be one in this manifest alone: it is named."""
    problem = fault.problem
    if fault.kind != TOGETHER or problem.file == manifest.file:
        return fault
    return replace(fault, problem=replace(problem, message=f"{problem.message} (in {manifest.file})"))


def check_shared(layers: Sequence[Layer]) -> dict[str, Any]:
    """The complete settings of lorabuild.toml and lorabuild.local.toml. Raises ConfigError with all problems."""
    merged = merge(layers)
    settings, found = _validated(SharedFile, merged, None)
    _raise(found)
    return settings


def _validated(
    model: type[Table], merged: Merged, bases: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[Fault]]:
    from pydantic import ValidationError

    try:
        return model.model_validate(merged.values, context=bases).model_dump(), []
    except ValidationError as error:
        return {}, faults(error.errors(include_url=False), model, merged)


def _has_source(merged: Merged) -> bool:
    project = merged.values.get("project")
    return isinstance(project, dict) and "source" in project


def _idle(merged: Merged, manifest: Layer) -> list[tuple[int, str]]:
    """(line, message) of what the manifest itself says to no effect. Its recipes may be for other projects, too."""
    used = {"save_precision", *(DRAWING if "samples" in merged.values else ())}
    keys = [key for key in manifest.table.get("recipe", {}) if _has_source(merged) and key not in used]
    said = f"recipe: nothing is trained here (project.source), so without effect: {', '.join(keys)}"
    return [(manifest.line("recipe", keys[0]), said)] if keys else []


def _variant_names(merged: Merged) -> list[str]:
    variants = merged.values.get("variants")
    return [name for name, tables in variants.items() if isinstance(tables, dict)] if isinstance(variants, dict) else []


def _raise(found: Any) -> None:
    if problems := [fault.problem for fault in found]:
        raise ConfigError(*problems)
