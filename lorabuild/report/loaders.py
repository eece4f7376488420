"""What ComfyUI, Forge, diffusers and InvokeAI make of each file, from its header."""

from __future__ import annotations

from typing import Any

from lorabuild.report.artifacts import artifacts, facts_of
from lorabuild.report.files import ProjectFiles

TITLE = "Loaders"
SAID = {"yes": "loads", "partly": "in part", "no": "does not load"}
FIRST = 5  # keys that are shown of those that a loader leaves


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """A row a file, a cell a loader. None where there is no file."""
    rows = []
    for owner, role, path in artifacts(files):
        found = facts_of(path)
        cells = [{**one, "said": SAID[one["loads"]]} for one in found.get("loaders", ())]
        rows.append({"name": owner.name, "role": role, "cells": cells, "fault": found.get("fault")})
    heads = next(([cell["loader"] for cell in row["cells"]] for row in rows if row["cells"]), [])
    return {"heads": heads, "rows": rows, "first": FIRST} if rows else None
