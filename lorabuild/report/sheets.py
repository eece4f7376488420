"""The contact sheet: each prompt with the base, what was trained and what was made of it, at one seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorabuild.errors import UserError
from lorabuild.report.files import ProjectFiles
from lorabuild.report.pictures import FOLDER, Picture, Thumbnails, prompts, read_pictures, settings_line, title
from lorabuild.sampling.held_out import read

TITLE = "Contact sheet"
LIBRARIES = ("viewer.css", "viewer.js")
MAKERS = {"trained": "train", "resized": "resize", "chopped": "chop"}  # role -> stage
PARTS = ("step", "without", "only")  # families that have sections of their own


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """Rows of prompts, columns of files. None without [samples]; without pictures, `note` says what draws them."""
    pictures = read_pictures(files)
    if pictures is None:
        if not files.settings.get("samples"):
            return None
        return {"note": "never", "columns": [], "rows": [], "why": [], "linked": 0, "held_out": []}
    thumbnails = Thumbnails(files.name)
    drawn = {picture.role: picture for picture in pictures if picture.role.partition("/")[0] not in PARTS}
    roles = list(dict.fromkeys([*drawn, *wanted(files)]))
    rows = [
        {
            "prompt": told["prompt"],
            "negative": told["negative_prompt"],
            "settings": settings_line(told),
            "line": told["line"],
            "cells": [_cell(row.get(role), role, thumbnails) for role in roles],
        }
        for told, row in prompts(pictures)
    ]
    state = files.states.get("samples")
    return {
        "note": "",
        "columns": [{"role": role, "title": title(role), "note": _note(files, role, drawn)} for role in roles],
        "rows": rows,
        "why": list(state.why) if state else [],
        "linked": thumbnails.linked,
        "held_out": [{"title": title(role), "role": role, **one} for role, one in _held_out(files).items()],
    }


def _held_out(files: ProjectFiles) -> dict[str, dict[str, Any]]:
    """What was measured of each file; empty where it was not asked for."""
    path = files.path("samples")
    return (read(path) if path else None) or {}


def beside(files: ProjectFiles) -> dict[str, Path | bytes]:
    """The pictures in full size, of this section and of those of steps and blocks."""
    try:
        pictures = read_pictures(files) or []
    except (UserError, OSError):  # the section says what is wrong
        return {}
    return {f"{FOLDER}/{picture.name}": picture.path for picture in pictures if picture.path is not None}


def wanted(files: ProjectFiles) -> list[str]:
    """The columns that the manifest asks for now, in order."""
    settings = files.settings
    first = "source" if settings["project"].get("source") else "trained"
    found = ["base", first]
    for one in (files, *files.variants.values()):
        found += _made(one)
    return list(dict.fromkeys(found))


def _made(one: ProjectFiles) -> Iterator[str]:
    """The roles of the files that a project or its variant is made by, as `samples` calls them: variants may share one."""
    for role, stage in MAKERS.items():
        if (state := one.states.get(stage)) is not None:
            family = state.job.partition("@")[2]
            if family or role != "trained":  # which stands at the beginning
                yield f"{family}/{role}".lstrip("/")


def _cell(picture: Picture | None, role: str, thumbnails: Thumbnails) -> dict[str, Any]:
    if picture is None:
        return {"role": role, "title": title(role), "fault": "never drawn"}
    return thumbnails.cell(picture)


def _note(files: ProjectFiles, role: str, drawn: Mapping[str, Picture]) -> str:
    """What is to be said of a column: it was never drawn, or what it was drawn with has been made anew since."""
    if role not in drawn:
        return f"never drawn: doit samples:{files.project}"
    variant, _, made = role.rpartition("/")
    job = f"{MAKERS.get(made)}:{files.name}" + (f"@{variant}" if variant else "")
    states = (one.states.get(MAKERS.get(made, "")) for one in (files, *files.variants.values()))
    state = next((one for one in states if one and one.job == job), None)
    if variant and state is None:
        return "no longer in the manifest"
    now = ((state.record or {}).get("outputs", {}).get("weights") or {}).get("digest") if state else None
    then = drawn[role].told["digest"]
    return "drawn with an earlier build of this file" if now and now != then else ""
