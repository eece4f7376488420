"""Carry a file's metadata over to what is made of it: hashes right, history kept, what a step did written down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorabuild.lora.adapter_metadata import KEY
from lorabuild.writing import BODY_SHA256

MODULE = "ss_network_module"
VECTOR, OURS = "block_vector_string", "lorabuild."
ARCHITECTURE = "stable-diffusion-xl-v1-base/lora"
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"

# Digests of the file that it was made of: of the new one they would be wrong, and UIs trust them unseen.
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "modelspec.thumbnail_hash")

# What speaks of ranks: PEFT's ranks and scales, and the dimensions that a trainer was told beside ss_network_dim.
OF_RANKS = (KEY, "ss_network_args")

# What UIs look for in an SDXL LoRA; given to a file that says nothing of itself.
LEAST = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_v2": "False",
    MODULE: "networks.lora",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": ARCHITECTURE,
    "modelspec.implementation": IMPLEMENTATION,
}


def inherited(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file, without its hashes, as far as they hold for what is made of it."""
    return {key: value for key, value in metadata.items() if key not in STALE}


def remade(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file whose layers get other ranks: what it says of them is no longer true."""
    return {key: value for key, value in metadata.items() if key not in OF_RANKS}


def making(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of its own making: which blocks a chop left, by what recipe it was resized, and so on."""
    return {key: _value(text) for key, text in metadata.items() if key == VECTOR or key.startswith(OURS)}


def of_several(files: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What a merge keeps of the metadata of its files: the first one's, but for its own making, and a module not all have."""
    gone = making(files[0]).keys()
    if len({metadata.get(MODULE) for metadata in files}) > 1:
        gone |= {MODULE}
    return {key: value for key, value in remade(files[0]).items() if key not in gone}


def amended(
    metadata: Mapping[str, str], name: str, facts: Mapping[str, Any], sha256: str = BODY_SHA256
) -> dict[str, str]:
    """The metadata of a file `name` that is made of one with `metadata`.

    `facts` go over what there is; tables and lists become JSON. `sha256`, in hex, is of the bytes after the new header.
    """
    found = {**LEAST, "modelspec.title": name, **inherited(metadata), **facts, "ss_output_name": name, **hashes(sha256)}
    return {key: _text(value) for key, value in sorted(found.items())}


def hashes(sha256: str) -> dict[str, str]:
    """The hash of a body under both names that it goes by: kohya's, and ModelSpec's with 0x."""
    return {"sshs_model_hash": sha256, "modelspec.hash_sha256": f"0x{sha256}"}


def _value(text: str) -> Any:
    """JSON as what it says, so that it is not quoted once more in every merge; what is none as it is."""
    try:
        value = json.loads(text)
        json.dumps([[[[value]]]])  # which goes less deep than reading does
        return value
    except (ValueError, RecursionError):
        return text


def _text(value: Any) -> str:
    """Strings as they are, the rest as kohya writes it: True, 0.0003, or JSON for tables and lists.

    Half a surrogate pair, as names of files have that are not UTF-8, is escaped as JSON does it: no header can hold it.
    """
    is_json = isinstance(value, Mapping | list)
    text = json.dumps(value, sort_keys=True, ensure_ascii=False) if is_json else str(value)
    return text.encode(errors="backslashreplace").decode()
