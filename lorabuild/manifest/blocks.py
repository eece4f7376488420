"""Read a rank or an alpha for each block of SDXL: by names and globs, or as sd-scripts' 23 numbers."""

from __future__ import annotations

import math
from typing import Any

from lorabuild.manifest.values import shown
from lorabuild.names import BLOCKS, SECTIONS, UNET_BLOCKS, matching_blocks, quoted

# sd-scripts' order for SDXL: embeddings, 9 input, 3 middle and 9 output blocks, the last layer. The first and the last
# number are of layers that no preset adapts, as is the first input block.
POSITIONS = ("", *UNET_BLOCKS, "")
SD15_NUMBERS = 25
NO_LAYERS = "INP00"  # conv_in


def per_block(value: Any) -> Any:
    """block -> number, in the order of the network. Raises ValueError; other types of values are left for pydantic."""
    if isinstance(value, str):
        value = [_number(part) for part in value.split(",")]
    if isinstance(value, list):
        return _of_numbers(value)
    return _of_names(value) if isinstance(value, dict) else value


def _of_numbers(numbers: list[Any]) -> dict[str, Any]:
    if len(numbers) != len(POSITIONS):
        counts = " + ".join(str(count) for _, count in SECTIONS.values())
        said = f"expected {len(POSITIONS)} numbers for SDXL (1 + {counts} + 1) or a table of blocks, got {len(numbers)}"
        raise ValueError(f"{said}: {SD15_NUMBERS} are SD 1.5's" if len(numbers) == SD15_NUMBERS else said)
    found = dict(zip(POSITIONS, numbers, strict=True))
    return {block: _checked(number, block) for block, number in found.items() if block not in ("", NO_LAYERS)}


def _of_names(table: dict[str, Any]) -> dict[str, Any]:
    """A name goes before a glob, and a later glob before an earlier one."""
    found: dict[str, Any] = {}
    for name in sorted(table, key=lambda name: (name in BLOCKS) * 2 + (name != "TE" and not _is_glob(name))):
        if name == NO_LAYERS:
            raise ValueError(f"{quoted(name)}: no adapter is put there: preset full begins at INP01")
        found |= {block: _checked(table[name], name) for block in matching_blocks(name)}
    return {block: found[block] for block in BLOCKS if block in found and block != NO_LAYERS}


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _checked(number: Any, name: str) -> Any:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
        raise ValueError(f"{name}: expected a number, 0 or more, got {shown(number)}")
    return number


def _number(text: str) -> int | float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"expected numbers between commas, got {shown(text.strip())}") from None
    return int(number) if number.is_integer() else number
