"""Carry a file's metadata over to what is made of it: hashes right, history kept, what a step did written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lorabuild.header import BODY_SHA256
from lorabuild.lora.adapter_metadata import KEY

ARCHITECTURE = "stable-diffusion-xl-v1-base/lora"
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"

# Digests of the file that it was made of: of the new one they would be wrong, and UIs trust them unseen.
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "modelspec.thumbnail_hash")

# What UIs look for in an SDXL LoRA; given to a file that says nothing of itself.
LEAST = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_v2": "False",
    "ss_network_module": "networks.lora",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": ARCHITECTURE,
    "modelspec.implementation": IMPLEMENTATION,
}


def inherited(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file, without its hashes, as far as they hold for what is made of it."""
    return {key: value for key, value in metadata.items() if key not in STALE}


def remade(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file whose layers get other ranks: PEFT's ranks and scales in it are no longer true."""
    return {key: value for key, value in metadata.items() if key != KEY}


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


def _text(value: Any) -> str:
    """Strings as they are, the rest as kohya writes it: True, 0.0003, or JSON for tables and lists."""
    if isinstance(value, Mapping | list):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return str(value)
