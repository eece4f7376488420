"""Read and write block vectors: the numbers, presets and % notation in which other tools say a LoRA's block weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from lorabuild.errors import near_miss
from lorabuild.names import BLOCKS, TEXT_ENCODERS, UNET_BLOCKS, finite, quoted

VECTOR_STYLES = ("resize_lora", "inspire")

# What resize_lora and Inspire-Pack number, after the first number. INP00 has no place: no LyCORIS file has that block.
VECTOR_BLOCKS = UNET_BLOCKS[1:]
# The blocks with attention: a LoRA of attention layers alone has no others.
ATTENTION_BLOCKS = ("INP04", "INP05", "INP07", "INP08", "MID01", "OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05")
# Our short name of a section -> its blocks
SECTION_BLOCKS = {short: tuple(b for b in UNET_BLOCKS if b.startswith(short)) for short in ("INP", "MID", "OUT")}

# How many numbers a vector has -> the blocks that each number after the first is the weight of.
LAYOUTS: dict[int, tuple[tuple[str, ...], ...]] = {
    12: tuple((block,) for block in ATTENTION_BLOCKS),
    # sd-webui-lora-block-weight: one number for the whole middle
    20: (*((b,) for b in SECTION_BLOCKS["INP"]), SECTION_BLOCKS["MID"], *((b,) for b in SECTION_BLOCKS["OUT"])),
    21: (("INP00", "INP01"), *((block,) for block in VECTOR_BLOCKS[1:])),
    22: tuple((block,) for block in UNET_BLOCKS),
}

# ComfyUI-Inspire-Pack, resources/lbw-preset.txt, its lines for SDXL: the sections that are 1, for 12 and 21 numbers.
# The first number is 1 too, but for NONE.
_PRESET_SECTIONS = {"NONE": (), "ALL": ("INP", "MID", "OUT"), "INALL": ("INP",), "MIDALL": ("MID",), "OUTALL": ("OUT",)}
PRESETS = {
    f"SDXL-{family}{name}": [float(name != "NONE"), *(float(group[0][:3] in ones) for group in LAYOUTS[count])]
    for family, count in (("", 12), ("LyC-", 21))
    for name, ones in _PRESET_SECTIONS.items()
}

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z@][^\s,]+")
_ITEM = re.compile(r"(?:(default|base)|(in|mid|out|double|single)(?:(\d{1,3})(?:-(\d{1,3}))?)?)\s*=\s*(.*)", re.ASCII)
_ITEM_SECTIONS = {"in": "INP", "mid": "MID", "out": "OUT"}

_EXPECTED = "a number like 0, 1 or 0.5 is expected"
_RANDOM = f"{_EXPECTED}; R and U are random in Inspire-Pack, and equal inputs must give equal files"
_PARAMETER = f"{_EXPECTED}; A and B are parameters of Inspire-Pack's node: write the number that they stand for"
_LETTERS = {"R": _RANDOM, "U": _RANDOM, "A": _PARAMETER, "B": _PARAMETER}


def vector_weights(vector: str, style: str | None = None, present: Sequence[str] | None = None) -> dict[str, float]:
    """The weight of each block that a vector speaks of; a block that it leaves out passes as it is.

    Three ways to write it: numbers with commas (LAYOUTS), a preset of Inspire-Pack or a line of its preset file
    ("NAME:1,0,…"), and Inspire-Pack's % notation ("%default=0,out2=1"). The first number multiplies the U-Net in
    resize_lora, and is the text encoders' weight in Inspire-Pack: 1 means the same in both, any other needs a `style`
    where the way of writing does not settle it. `present` are the blocks of the file at hand, None if there is none.
    Raises ValueError in one line.
    """
    text = vector.strip()
    if text.startswith("%"):
        return _notation_weights(text[1:], style, present)
    if ":" in text:
        numbers = _numbers(text.split(":")[1])
    elif _NAME.fullmatch(text):
        numbers = _preset(text)
    else:
        return _numbered(_numbers(text), style, present)
    _check_inspire(numbers[0], style)
    return _numbered(numbers, "inspire", present)


def block_vector(weights: Mapping[str, float]) -> str:
    """resize_lora's 21 numbers: 1, then the weights of INP01..INP08, MID00..MID02, OUT00..OUT08."""
    return ",".join(["1", *(f"{weights[block]:g}" for block in VECTOR_BLOCKS)])


def vector_strings(blocks: Collection[str]) -> dict[str, str]:
    """What to write to keep a file's `blocks`, by notation: the entries of keep, and vectors of ones and zeros.

    Inspire-Pack's has 22 numbers if INP00 is there, else 21. No block is lost by any of them: vectors that have one
    number for several blocks keep all of these, and leave alone what they do not name. Without blocks, `keep` is empty.
    """
    both = all(block in blocks for block in TEXT_ENCODERS)
    kept = ["TE"] if both else [block for block in TEXT_ENCODERS if block in blocks]
    kept += [block for block in UNET_BLOCKS if block in blocks]
    counts = {"inspire": 22 if "INP00" in blocks else 21, "lbw20": 20, "lbw12": 12}
    return {"keep": ",".join(kept)} | {name: _ones(LAYOUTS[count], blocks) for name, count in counts.items()}


def _ones(groups: Sequence[Sequence[str]], blocks: Collection[str]) -> str:
    """The first number is 1, which all tools read alike."""
    return ",".join(["1", *("1" if any(block in blocks for block in group) else "0" for group in groups)])


def _numbered(numbers: Sequence[float], style: str | None, present: Sequence[str] | None) -> dict[str, float]:
    groups, also = LAYOUTS.get(len(numbers)), ""
    if style == "resize_lora" and present is not None:  # it numbers the blocks that it finds
        own = tuple((block,) for block in UNET_BLOCKS if block in present)
        also = f" (for this file also {1 + len(own)}: its U-Net blocks are {len(own)})"
        groups = own if len(numbers) == 1 + len(own) else groups
    if groups is None:
        raise ValueError(f"12, 20, 21 or 22 numbers are expected, got {len(numbers)}{also}")
    first, *rest = numbers
    if style is None and first != 1:
        raise ValueError(
            f"the first number is {first:.12g}: resize_lora multiplies the U-Net by it, Inspire-Pack the text encoders, as "
            'LBW does; say which by vector_style = "resize_lora" or "inspire", or write 1'
        )
    unet, text_encoders = (1.0, first) if style == "inspire" else (first, 1.0)
    weights = dict.fromkeys(TEXT_ENCODERS, text_encoders)
    for place, (group, number) in enumerate(zip(groups, rest, strict=True), 2):
        weights |= dict.fromkeys(group, finite(unet * number, f"number {place}, multiplied by the first,"))
    return weights


def _numbers(text: str) -> list[float]:
    return [_number(part.strip(), f"number {place}") for place, part in enumerate(text.split(","), 1)]


def _number(text: str, name: str) -> float:
    if _NUMBER.fullmatch(text):
        return finite(float(text), name)
    reason = _LETTERS.get(text.upper(), _EXPECTED)
    if len(text.split()) > 1:
        reason = "values for single layers inside a block are not supported; between blocks there is a comma"
    raise ValueError(f"{name} is {quoted(text)}: {reason}")


def _preset(name: str) -> list[float]:
    if name.startswith(("SD-", "FLUX")):
        raise ValueError(f"{quoted(name)} is a preset for another model family; those for SDXL start with SDXL-")
    if name not in PRESETS:
        hint = near_miss(name.upper(), PRESETS) or "; write its numbers"
        raise ValueError(f"{quoted(name)} is not a preset of Inspire-Pack for SDXL{hint}")
    return PRESETS[name]


def _check_inspire(first: float, style: str | None) -> None:
    if style == "resize_lora" and first != 1:
        raise ValueError(
            f"this is Inspire-Pack's notation, and its first number ({first:.12g}) the text encoders' weight: "
            'vector_style = "resize_lora" contradicts it'
        )


def _notation_weights(spec: str, style: str | None, present: Sequence[str] | None) -> dict[str, float]:
    """Inspire-Pack's % notation: `default` and `base` count wherever they stand, of the other items the last one does."""
    common: dict[str, float] = {}
    weights: dict[str, float] = {}
    for place, item in enumerate(spec.split(","), 1):
        said = f"item {place} is {quoted(item.strip())}"
        if not (match := _ITEM.fullmatch(item.strip())):
            raise ValueError(f"{said}: expected default=x, base=x, in=x, in4=x or in4-6=x (in, mid or out)")
        name, section, first, last, number = match.groups()
        weight = _number(number, f"the number of item {place}")
        if name:
            common[name] = weight
        else:
            weights |= dict.fromkeys(_item_blocks(said, section, first, last, present), weight)
    if "default" in common:
        weights = dict.fromkeys(BLOCKS, common["default"]) | weights
    if "base" in common:
        weights |= dict.fromkeys(TEXT_ENCODERS, common["base"])
    if unsaid := [block for block in BLOCKS if block not in weights and (present is None or block in present)]:
        raise ValueError(
            f"nothing is said of {', '.join(unsaid)}: add default=1 to leave the rest as it is, or default=0"
        )
    _check_inspire(weights.get(TEXT_ENCODERS[0], 1.0), style)
    return weights


def _item_blocks(
    said: str, section: str, first: str | None, last: str | None, present: Sequence[str] | None
) -> Sequence[str]:
    """The blocks of `in`, `in4` or `in4-6`. The numbers count from 1, and only blocks that the file has."""
    if section not in _ITEM_SECTIONS:
        raise ValueError(f"{said}: {section} blocks are Flux's, SDXL has in, mid and out")
    short = _ITEM_SECTIONS[section]
    if first is None:
        return SECTION_BLOCKS[short]
    if present is None:
        raise ValueError(
            f"{said}: the {first} counts the blocks that a file happens to have, and there is no file yet; "
            "name the block by keep or weights (such as INP04), or give 21 numbers"
        )
    start, stop = int(first), int(last or first)
    if not 1 <= start <= stop:
        raise ValueError(f"{said}: blocks are counted upwards from 1")
    there = [block for block in SECTION_BLOCKS[short] if block in present]
    if stop > len(there):
        raise ValueError(f"{said}: the file has {len(there)} {short} blocks")
    return there[start - 1 : stop]
