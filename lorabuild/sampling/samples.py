"""What [samples] of a project asks for: the file of prompts, the default size, and when a training draws."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.data.prompts import LEAST_SIDE, SIDE_STEP
from lorabuild.manifest.bases import base_places
from lorabuild.manifest.layers import shown
from lorabuild.names import quoted
from lorabuild.stage import TextFile
from lorabuild.training.updates import end_of_epoch

if TYPE_CHECKING:
    from lorabuild.manifest import Project, Repository

SDXL_SIDE, TINY_SIDE = 1024, 128  # pixels that SDXL, and the built-in base, are made for
CHUNK = 75  # tokens that a text encoder takes at once


def sampling(repository: Repository, project: Project) -> dict[str, Any] | None:
    """[samples] of a project, plain values, with `path` and `shown` of its prompts, the default `size`, where `live`
    pictures go, and where a `vae` of its own may lie. None without the table."""
    samples = project.settings.get("samples")
    if not samples:
        return None
    file = prompt_file(repository, project)
    live = repository.root / "build" / project.name / "live"
    base = project.settings["project"]["base"]
    size = default_size(project.settings, repository.bases[base])
    vae = [str(place) for place in base_places(repository, base, "vae")]
    return {**samples, "path": str(file.path), "shown": file.shown, "live": str(live), "size": size} | (
        {"vae": vae} if vae else {}
    )


def prompt_file(repository: Repository, project: Project) -> TextFile:
    """The file of prompts; relative to the manifest."""
    path = Path(os.path.normpath(project.folder / os.path.expanduser(project.settings["samples"]["prompts"])))
    inside = path.is_relative_to(repository.root)
    return TextFile(path, shown(path, repository.root) if inside else quoted(str(path))[1:-1], ("samples", "prompts"))


def default_size(settings: Mapping[str, Any], base: Mapping[str, Any]) -> list[int]:
    """[width, height] of a prompt that does not say it: what is trained on, else SDXL's own; never beyond what the tiny
    base is made for."""
    sides = (settings["dataset"] or {}).get("resolution") or [SDXL_SIDE, SDXL_SIDE]
    least = min(1.0, TINY_SIDE / max(sides)) if base.get("builtin") else 1.0
    return [max(LEAST_SIDE, int(side * least) // SIDE_STEP * SIDE_STEP) for side in sides]


def sample_steps(
    samples: Mapping[str, Any], snapshots: Sequence[int], last: int, batches: int, accumulation: int
) -> set[int]:
    """After which updates a training draws: every so many, or the first ones after whole epochs, or at all snapshots.

    `batches`: of an epoch; an update takes `accumulation` of them, and goes on over an epoch's end.
    """
    first = {0} if samples["sample_at_first"] else set()
    if every := samples["sample_every_n_steps"]:
        return first | set(range(every, last + 1, every))
    if epochs := samples["sample_every_n_epochs"]:
        ends = range(epochs, last * accumulation // batches + 1, epochs)
        return first | {end_of_epoch(epoch, batches, accumulation) for epoch in ends}
    return first | set(snapshots)


def too_long(counts: Sequence[int]) -> str:
    """What is worth a word of a prompt's tokens, by both tokenizers; nothing of most."""
    if max(counts) <= CHUNK:
        return ""
    return (
        f"{' and '.join(map(str, counts))} tokens by the two tokenizers: more than the {CHUNK} that SDXL takes at once; "
        f"drawn in {-(-max(counts) // CHUNK)} chunks"
    )
