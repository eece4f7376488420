"""Complete and check the settings of a project, or of the whole repository, from their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorabuild.errors import ConfigError
from lorabuild.manifest.explain import MISSING, TOGETHER, Fault, faults
from lorabuild.manifest.layers import Layer
from lorabuild.manifest.merge import Merged, merge, variant
from lorabuild.manifest.schema import Manifest, SharedFile, Table, TrainedManifest

DRAWING = ("seed", "mixed_precision", "zero_terminal_snr")  # what of [recipe] counts for pictures


def check_project(layers: Sequence[Layer], bases: Mapping[str, Any] | None, partial: bool = False) -> dict[str, Any]:
    """{"settings": the project's, "variants": {name: settings}, "idle": what the manifest says to no effect}, complete.

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
    variants = {}
    for name in _variant_names(merged):
        variants[name], wrong = _validated(model, variant(merged, name), bases)
        found += [fault for fault in wrong if fault.path not in told]
    found = [fault for fault in found if not (partial and fault.kind in (MISSING, TOGETHER))]
    _raise(_for_whom(fault, layers[-1]) for fault in found)
    return {"settings": settings, "variants": variants, "idle": _idle(merged, layers[-1])}


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
