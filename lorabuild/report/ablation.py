"""Blocks left out, and blocks alone: what each does to the picture of a prompt (`blocks_ablation` in [samples])."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorabuild.names import BLOCKS
from lorabuild.report.files import ProjectFiles
from lorabuild.report.pictures import Picture, Thumbnails, prompts, read_pictures, title

TITLE = "Blocks in pictures"
LIBRARIES = ("viewer.css", "viewer.js")
KINDS = {"without": "left out", "only": "alone"}


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """For each prompt the whole LoRA's picture, and two for each block, in the order of the U. None where none was drawn."""
    pictures = read_pictures(files) or []
    parts = [one for one in pictures if "block" in one.told]
    if not parts:
        return None
    whole = parts[0].told["weights"]
    drawn = {one.told["block"] for one in parts}
    blocks = [block for block in BLOCKS if block in drawn]
    thumbnails = Thumbnails(files.name)
    rows = [_row(told, row, whole, blocks, thumbnails) for told, row in prompts(pictures)]
    return {"whole": title(whole), "rows": rows, "kinds": KINDS, "linked": thumbnails.linked}


def _row(
    told: Mapping[str, Any], row: Mapping[str, Picture], whole: str, blocks: list[str], thumbnails: Thumbnails
) -> dict[str, Any]:
    changes = {role: one.told["difference"].get(whole) for role, one in row.items() if "block" in one.told}
    most = {  # each kind has bars of its own scale: one block alone is far from the whole, one left out is near it
        kind: max((change or 0 for role, change in changes.items() if role.startswith(f"{kind}/")), default=0) or 1
        for kind in KINDS
    }
    full = [thumbnails.cell(row[role]) for role in (whole, "base") if role in row]
    cells = [
        {
            "block": block,
            "pictures": [_cell(row[f"{kind}/{block}"], kind, changes, most[kind], thumbnails) for kind in KINDS],
        }
        for block in blocks
        if all(f"{kind}/{block}" in row for kind in KINDS)
    ]
    return {"prompt": told["prompt"], "full": full, "blocks": cells}


def _cell(
    picture: Picture, kind: str, changes: Mapping[str, float | None], most: float, thumbnails: Thumbnails
) -> dict[str, Any]:
    change = changes[picture.role]
    share = None if change is None else round(100 * change / most, 1)
    return thumbnails.cell(picture) | {"kind": KINDS[kind], "change": change, "share": share}
