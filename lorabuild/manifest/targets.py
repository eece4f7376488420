"""Say whose jobs make a project and its variants: what two of them have in common is made once, and has one name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorabuild.lora.ranks import resolve_recipe
from lorabuild.manifest.keys import result_keys
from lorabuild.manifest.matrix import part_name, text

if TYPE_CHECKING:
    from lorabuild.manifest.repository import Project

# Stage -> the tables and keys that its jobs see of a combination of [matrix]: they are named by these alone
PARTS = {
    "train": ("recipe",),
    "spectrum": ("recipe", "resize.step", "resize.subspace"),
    "resize": ("recipe", "resize"),
    "chop": ("recipe", "resize", "chop"),
}
PLURALS = {"spectrum": "spectra"}
Settings = Mapping[str, Any]


def targets(project: Project) -> list[tuple[str, Settings]]:
    """What is made of a project, with its complete settings: itself, then `project@variant` for each variant."""
    variants = ((f"{project.name}@{variant}", changed) for variant, changed in project.variants.items())
    return [(project.name, project.settings), *variants]


def makers(project: Project, stage: str, table: str | None = None) -> dict[str, dict[str, Settings]]:
    """Whose jobs of `stage` there are -> the targets that share each, with their settings: of those that have `table`."""
    found: dict[str, dict[str, Settings]] = {}
    for target, settings in targets(project):
        if table is None or settings[table] is not None:
            found.setdefault(maker(project, target, stage), {})[target] = settings
    return found


def maker(project: Project, target: str, stage: str) -> str:
    """Whose job of `stage` the files of `target` are made by: `ember`, `ember@mini`, or `ember@unet_lr3e-4`.

    The project trains for all its variants whose recipe gives the same training. Those of a sweep share by what the
    stage sees of their combination; a hand-named one has jobs of its own.
    """
    name, _, variant = target.partition("@")
    if not variant or stage not in PARTS:
        return name
    if stage in ("train", "spectrum") and _alike(project, project.variants[variant], stage):
        return name
    if variant not in project.swept:
        return target
    part = part_name(project.swept[variant], PARTS[stage])
    return f"{name}@{part}" if part else name


def sweep(project: Project) -> str:
    """`thr 3 × unet_lr 2 = 6 variants: 1 training beside the project's own, 1 spectrum, 6 resizes, 6 chops`; empty without one."""
    if not project.swept:
        return ""
    values: dict[str, set[str]] = {}
    for point in project.swept.values():
        for key, value in point.items():
            values.setdefault(key.rpartition(".")[2], set()).add(text(value))
    lists = " × ".join(f"{key} {len(found)}" for key, found in values.items())
    made = []
    for stage, word in (("train", "training"), ("spectrum", "spectrum"), ("resize", "resize"), ("chop", "chop")):
        users = makers(project, stage, None if stage == "train" else stage if stage != "spectrum" else "resize")
        swept = {
            owner for owner, targets in users.items() if {one.partition("@")[2] for one in targets} & {*project.swept}
        }
        if stage == "train" and project.settings["project"]["source"]:
            continue
        if own := len(swept - {project.name}):
            made.append(f"{own} {word if own == 1 else PLURALS.get(word, f'{word}s')}")
    rest = " beside the project's own" if made else "all of it the project's own"
    return f"{lists} = {len(project.swept)} variant{'s' * (len(project.swept) != 1)}: {', '.join(made)}{rest}"


def asks_subspace(resize: Mapping[str, Any]) -> bool:
    """Does a [resize] need the subspace's scores?"""
    return "subspace" in resolve_recipe(resize)


def _alike(project: Project, settings: Settings, stage: str) -> bool:
    return _trained_alike(project, settings) and (stage == "train" or _decomposed_alike(project, settings))


def _trained_alike(project: Project, settings: Settings) -> bool:
    own, shared = settings["recipe"], project.settings["recipe"]
    if project.settings["project"]["source"]:
        return True  # nothing is trained: all start from the same file
    return own == shared or result_keys(settings, "recipe") == result_keys(project.settings, "recipe")


def _decomposed_alike(project: Project, settings: Settings) -> bool:
    """Does a variant of the project's training resize the project's own spectrum?

    Not if the project has none, one of another step, or one without the subspace's scores that it asks for: added to
    the project's, these would have all other resizes built again.
    """
    own, shared = settings["resize"], project.settings["resize"]
    return bool(own and shared and shared["step"] == own["step"] and (asks_subspace(shared) or not asks_subspace(own)))
