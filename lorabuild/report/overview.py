"""The head of a project's page: what it is, the state of each stage, its files with sizes and hashes, and commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from lorabuild.report.artifacts import MAKERS, artifacts, facts_of
from lorabuild.report.files import ProjectFiles, StageState

TITLE = "Overview"
TOLD = ("trigger", "kind", "base", "source", "title", "author", "license", "tags", "description")
MOST_STEPS = 8  # of snapshots that are named


def data(files: ProjectFiles) -> dict[str, Any]:
    """Facts of [project], stages, files, commands."""
    project = files.settings["project"]
    stages = [_stage(one) for one in files.states.values()]
    more = [(name, _stage(one)) for name, own in files.named.items() for one in _own(files, own)]
    return {
        "facts": [(key, _text(project[key])) for key in TOLD if project.get(key)],
        "stages": [("", one) for one in stages] + more,
        "files": list(_files(files)),
        "commands": list(_commands(files)),
        "any_why": any(one["why"] for one in [*stages, *(one for _, one in more)]),
        "built": any(files.path(role) for role in ("trained", "resized", "chopped")),
    }


def _own(files: ProjectFiles, variant: ProjectFiles) -> Iterator[StageState]:
    """The stages that a variant does not share."""
    shared = {one.job for one in files.states.values()}
    return (one for one in variant.states.values() if one.job not in shared)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _stage(state: StageState) -> dict[str, Any]:
    record = state.record or {}
    return {
        "name": state.stage,
        "job": state.job,
        "state": state.state,
        "why": list(state.why),
        "failure": state.failure,
        "seconds": record.get("seconds"),
        "device": record.get("made_with", {}).get("device"),
    }


def _files(files: ProjectFiles) -> Iterator[dict[str, Any]]:
    """A row a LoRA. `ratio`: of its size to that of the trained file, or of the file that the project starts from."""
    whole = files.path("trained") or files.path("source")
    size = whole.stat().st_size if whole else None
    for owner, role, path in artifacts(files):
        found = facts_of(path)
        state = owner.states.get(MAKERS.get(role, ""))
        yield {
            "file": os.path.relpath(path, files.root),
            "role": role,
            "state": state.state if state else None,
            "size": path.stat().st_size,
            "ratio": path.stat().st_size / size if size else None,
            **{key: found.get(key) for key in ("fault", "tensors", "ranks", "hashes")},
            "layers": sum(found.get("layers", {}).values()),
            "blocks": len(found.get("blocks", ())),
            "snapshots": False,
        }
    if files.snapshots:
        sizes = [path.stat().st_size for path in files.snapshots.values()]
        steps = list(files.snapshots)
        named = ", ".join(map(str, steps if len(steps) <= MOST_STEPS else [*steps[: MOST_STEPS - 2], "…", steps[-1]]))
        yield {
            "file": f"{len(sizes)} snapshots",
            "role": f"step {named}",
            "size": sum(sizes),
            "fault": None,
            "snapshots": True,
        }


def _commands(files: ProjectFiles) -> Iterator[tuple[str, str]]:
    """(command, what it does)."""
    name = files.name
    yield f"doit {name}", "build what is stale of it"
    stale = next((one for one in files.states.values() if one.state != "fresh"), None)
    if stale:
        yield f"lorabuild why {stale.job}", f"why {stale.job} is not fresh"
    else:
        last = list(files.states.values())[-1] if files.states else None
        if last:
            yield f"doit -a {last.job}", f"build {last.job} anew"
    yield f"lorabuild check {name}", "look at images, captions and recipe before a build"
    if chopped := files.path("chopped") or files.path("trained"):
        yield f"lorabuild show {os.path.relpath(chopped, files.root)}", "header, metadata and loaders of the file"
    yield "doit report", "build, and write this page anew"
