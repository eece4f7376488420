"""The block picker: what each block of the file that a chop reads holds, and all that it takes to say what would stay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabuild.header import Header, TensorInfo, read_header
from lorabuild.lora.amend import VECTOR, amended
from lorabuild.lora.chopping import Blocks
from lorabuild.lora.layers import split_key
from lorabuild.lora.loaders import INVOKE_WIDTHS, NOT_SDXL, Signs, invoke_signs, verdicts
from lorabuild.lora.modules import lora_file, read_alphas
from lorabuild.metadata import metadata
from lorabuild.names import BLOCKS, TEXT_ENCODERS, resolve_chop
from lorabuild.report.files import ProjectFiles
from lorabuild.tensors import FLOATS
from lorabuild.vectors import ATTENTION_BLOCKS, LAYOUTS, PRESETS, SECTION_BLOCKS
from lorabuild.verbs.blocks import Row, rows

TITLE = "Blocks"
CHOP = "lorabuild.chop"  # the key of a header under which a chop's settings stand

# What the rules of names.py and vectors.py rest on, as the page's script reads it.
RULES = {
    "blocks": BLOCKS,
    "text_encoders": TEXT_ENCODERS,
    "sections": SECTION_BLOCKS,
    "attention": ATTENTION_BLOCKS,
    "layouts": {str(count): groups for count, groups in LAYOUTS.items()},
    "presets": PRESETS,
    "invoke_widths": sorted(INVOKE_WIDTHS),
    "not_sdxl": NOT_SDXL,
}


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """A picker for the project and one for each variant by hand, as far as there is a file to chop. Reads its tensors."""
    found = [one for each in (files, *files.named.values()) if (one := _picker(each)) is not None]
    return {"rules": RULES, "pickers": found} if found else None


def _picker(files: ProjectFiles) -> dict[str, Any] | None:
    role = "resized" if files.settings["resize"] else "source" if files.settings["project"].get("source") else "trained"
    path = files.path(role)
    if path is None:
        return None
    header = read_header(path)
    blocks = Blocks.read(header.tensors)
    if not blocks.present:
        return None
    chop = files.settings["chop"] or {}
    stage = files.states.get({"resized": "resize", "trained": "train"}.get(role, ""))
    chopped = files.path("chopped")
    weights = resolve_chop(chop)
    variant = files.name.partition("@")[2]
    return {
        "name": files.name,
        "variant": variant,
        "table": f"variants.{variant}.chop" if variant else "chop",
        "job": f"chop:{files.name}",
        "named": list(chop.get("weights") or {}),
        "file": path.name,
        "stem": path.stem,
        "role": role,
        "state": stage.state if stage else "fresh",
        "size": header.size,
        "chopped": chopped.stat().st_size if chopped else None,
        "allow_empty": bool(chop.get("allow_empty")),
        "weights": {block: weights[block] for block in blocks.present},
        "blocks": _blocks(path, header, blocks),
        "layout": _layout(header.tensors, blocks),
        "metadata": _metadata_bytes(files, header),
        "loaders": [
            {"loader": one.loader, "loads": one.loads, "reason": one.reason}
            for one in verdicts(header.tensors, header.metadata, read_alphas(path, header.tensors))
            if one.loads != "yes"
        ],
    }


def _blocks(path: Path, header: Header, blocks: Blocks) -> list[dict[str, Any]]:
    """What `lorabuild blocks` shows of each, and what a weight and InvokeAI make of it. Last what is in no block, if any."""
    *found, _total = rows(path, header, blocks)
    return [_block(row, _part(header.tensors, blocks, row.block), header.metadata) for row in found]


def _part(tensors: Mapping[str, TensorInfo], blocks: Blocks, block: str | None) -> dict[str, TensorInfo]:
    return {key: info for key, info in tensors.items() if blocks.of[key] == block}


def _block(row: Row, part: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, Any]:
    roles = {key: found[1] if (found := split_key(key)) else "" for key in part}
    unscaled = [key for key, role in roles.items() if not role or (part[key].dtype not in FLOATS and role != "alpha")]
    return {
        "block": row.block,
        "modules": row.modules,
        "tensors": row.tensors,
        "bytes": row.bytes,
        "rank_median": row.rank_median,
        "rank_max": row.rank_max,
        "share": row.share,
        "dora": sum(role == "dora_scale" for role in roles.values()),
        "unscaled": len(unscaled),
        "signs": _signs(invoke_signs(lora_file(part, metadata))),
    }


def _signs(signs: Signs) -> dict[str, Any]:
    return {"unet": sorted(signs.unet), "te1": sorted(signs.te1), "te2": sorted(signs.te2), "deep": signs.deep}


def _layout(tensors: Mapping[str, TensorInfo], blocks: Blocks) -> dict[str, list[int]]:
    """Of each tensor in name order: its block's place in `blocks`, its bytes, and its bytes in a header with a comma after
    it, but for the digits of its two offsets. From these the size of any chop follows to the byte."""
    order = [block for block in (*BLOCKS, None) if blocks.counts.get(block)]
    names = sorted(tensors)
    return {
        "block": [order.index(blocks.of[name]) for name in names],
        "bytes": [tensors[name].stop - tensors[name].start for name in names],
        "entry": [_entry_bytes(name, tensors[name]) for name in names],
    }


def _entry_bytes(name: str, info: TensorInfo) -> int:
    entry = {name: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [0, 0]}}
    return len(_compact(entry)) - len("{00}") + len(",")


def _metadata_bytes(files: ProjectFiles, header: Header) -> int:
    """Of `__metadata__` in the header of the chopped file, without the two keys that tell of the selection."""
    chopped = files.path("chopped")
    found = dict(read_header(chopped).metadata) if chopped else _told(files, header)
    return len(_compact({key: value for key, value in found.items() if key not in (VECTOR, CHOP)}))


def _told(files: ProjectFiles, header: Header) -> dict[str, str]:
    """What a header will tell of a file that was never chopped: what its source tells, and that it is chopped."""
    name = f"{files.name.replace('@', '-')}-chopped"
    own = {"lorabuild.inputs": {"weights": "0" * 32}, "lorabuild.stages": 2}  # as long as what will stand there
    if files.settings["resize"] or not files.settings["project"].get("source"):
        facts = {key: {**_json(header.metadata.get(key)), "chop": value} for key, value in own.items()}
        return amended(header.metadata, name, facts)
    made = {
        "version": own["lorabuild.stages"],
        "params": {"chop": {"keep": dict.fromkeys(BLOCKS, 1.0)}},
        "inputs": own["lorabuild.inputs"],
    }
    about = {"name": name, "project_name": files.project, "trained": "weights", "project": files.settings["project"]}
    return metadata({**about, "made_by": {"chop": made}}, "0" * 64, None, None, header.metadata)


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
