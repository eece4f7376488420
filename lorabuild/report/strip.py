"""The step strip: each prompt as the training goes on, one snapshot after another."""

from __future__ import annotations

from typing import Any

from lorabuild.report.files import ProjectFiles
from lorabuild.report.pictures import Thumbnails, prompts, read_pictures

TITLE = "Steps"
LIBRARIES = ("viewer.css", "viewer.js", "stepper.js")


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """For each prompt the base, the snapshots in their order, and what was trained. None where no snapshot was drawn."""
    pictures = read_pictures(files) or []
    steps = sorted({int(one.role.partition("/")[2]) for one in pictures if one.role.startswith("step/")})
    if not steps:
        return None
    present = {one.role for one in pictures}
    roles = [role for role in ("base", *(f"step/{step}" for step in steps), "trained") if role in present]
    thumbnails = Thumbnails(files.name)
    rows = [
        {
            "prompt": told["prompt"],
            "cells": [thumbnails.cell(row[role]) for role in roles if role in row],
        }
        for told, row in prompts(pictures)
    ]
    return {"titles": [_title(role) for role in roles], "rows": rows, "linked": thumbnails.linked}


def _title(role: str) -> str:
    return {"base": "base, step 0", "trained": "trained, the end"}.get(role, role.replace("/", " "))
