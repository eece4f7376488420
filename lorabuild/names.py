"""Name projects and blocks: which names are allowed, which block a tensor belongs to, what [chop] keeps of each block."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lorabuild.errors import near_miss

STAGES = ("base", "norms", "dataset", "latents", "train", "spectrum", "resize", "chop", "samples")
REPORT = "report"  # a target without jobs: the pages are written when the others are done
BY_DEFAULT = STAGES[:-1]  # what plain `doit` builds, unless [build] default says otherwise

# Verbs of ours that a repository registers with doit, too: `doit blocks` is `lorabuild blocks`.
REPOSITORY_VERBS = (
    "blocks", "check", "explain", "doctor", "plan", "why", "status", "verify", "gc", "diff", "pull", "push",
    "init", "new", "set",
    "import",
    "export",
)  # fmt: skip

# A project is a target beside stages and commands, so it may not have the name of one.
RESERVED = (
    *STAGES, REPORT,
    "plan", "why", "status", "diff", "export", "explain", "doctor", "check", "blocks", "verify", "gc", "pull", "push",
    "init", "new", "import", "set", "show", "merge",
    "build", "help", "run", "list", "info", "clean", "forget", "ignore", "dumpdb", "strace", "tabcompletion", "reset-dep",
)  # fmt: skip

# What ends the name of a file in build/ that is made of a training's: <name>-resized, <name>-chopped, <name>-step00000010
MADE_NAMES = re.compile(r"-(resized|chopped|step\d{8})$")

# SGM's section of the SDXL U-Net -> our short name, number of blocks
SECTIONS = {"input_blocks": ("INP", 9), "middle_block": ("MID", 3), "output_blocks": ("OUT", 9)}
UNET_BLOCKS = tuple(f"{short}{number:02}" for short, count in SECTIONS.values() for number in range(count))
TEXT_ENCODERS = ("TE1", "TE2")
BLOCKS = UNET_BLOCKS + TEXT_ENCODERS

_UNET_KEY = re.compile(rf"lora_unet_({'|'.join(SECTIONS)})_(\d)_")
_TEXT_ENCODER_KEY = re.compile(r"lora_te([12])_")


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a project, a variant or a base; None if nothing is."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        return None
    better = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")
    hint = f' (for example "{better}")' if better else ""
    return (
        f'{quoted(name)}: a name has lower-case letters, digits, "_" and "-", and starts with a letter or digit{hint}'
    )


def quoted(text: str) -> str:
    """A name as messages show it: in quotes and on one line, whatever is in it; bytes that are not UTF-8 are escaped."""
    return json.dumps(text.encode(errors="backslashreplace").decode(), ensure_ascii=False)


def block_of(key: str) -> str | None:
    """The block of a tensor or module by its kohya name: `lora_unet_input_blocks_4_1_…` -> INP04, `lora_te1_…` -> TE1.

    None for what is in no block (time_embed, label_emb, out, names of another layout): a chop passes that as it is.
    """
    if match := _UNET_KEY.match(key):
        block = f"{SECTIONS[match[1]][0]}0{match[2]}"
        return block if block in UNET_BLOCKS else None
    if match := _TEXT_ENCODER_KEY.match(key):
        return f"TE{match[1]}"
    return None


def resolve_chop(chop: Mapping[str, Any], present: Sequence[str] | None = None) -> dict[str, float]:
    """The weight of each of BLOCKS, in that order: 0 drops the block, 1 leaves it as it is, 0.5 halves its effect.

    `chop` is the manifest's table: `keep` or `vector` selects (all, without either), `weights` scales what is selected.
    `present` are the blocks of the file at hand, if there is one: some vectors count these. Spellings that mean the same
    give equal results. Raises ValueError in one line.
    """
    selected, scale = _selected(chop, present), block_scales(chop.get("weights") or {})
    return {block: finite(selected[block] * scale.get(block, 1.0)) for block in BLOCKS}


def _selected(chop: Mapping[str, Any], present: Sequence[str] | None) -> dict[str, float]:
    """What `keep` or `vector` alone make of each block."""
    from lorabuild.vectors import vector_weights  # not at the top: vectors are made of the blocks that are named here

    keep, vector = chop.get("keep"), chop.get("vector")
    if keep is not None and vector is not None:
        raise ValueError('"keep" and "vector" both say which blocks stay: one of them is enough')
    selected = dict.fromkeys(BLOCKS, 1.0)
    if vector is not None:
        selected |= vector_weights(vector, chop.get("vector_style"), present)
    elif keep is not None:
        kept = kept_blocks(keep)
        selected = {block: float(block in kept) for block in BLOCKS}
    return selected


def idle_weights(chop: Mapping[str, Any], present: Sequence[str] | None = None) -> list[str]:
    """The names in `weights`, but for zeros, of blocks that `keep` or `vector` drops: who scales them expects otherwise."""
    selected = _selected(chop, present)
    weights = {name: weight for name, weight in (chop.get("weights") or {}).items() if weight}
    return [name for name in weights if not any(selected[block] for block in _blocks_of(name))]


def _blocks_of(name: str) -> tuple[str, ...]:
    return TEXT_ENCODERS if name == "TE" else (name,)


def named_blocks(chop: Mapping[str, Any], present: Sequence[str] | None = None) -> list[str]:
    """The kept blocks that the user named one by one, not by a glob or vector: it is worth a warning if a file lacks one."""
    names = [*(chop.get("keep") or ()), *(chop.get("weights") or {})]
    named = {block for name in names for block in _blocks_of(name)}
    return [block for block, weight in resolve_chop(chop, present).items() if weight and block in named]


def kept_blocks(keep: Sequence[str]) -> set[str]:
    """What a list of names, globs and negations keeps. Its entries count in their order.

    The list starts empty, or full if its first entry is a negation: `["!OUT08"]` is all but OUT08.
    """
    kept = set(BLOCKS) if keep and keep[0].startswith("!") else set()
    for entry in keep:
        if entry.startswith("!"):
            kept -= matching_blocks(entry[1:])
        else:
            kept |= matching_blocks(entry)
    return kept


def matching_blocks(pattern: str) -> set[str]:
    """The blocks that a name or a glob stands for; `TE` is both text encoders. Raises ValueError if there are none."""
    found = set(TEXT_ENCODERS) if pattern == "TE" else {block for block in BLOCKS if fnmatchcase(block, pattern)}
    if not found:
        said = "matches no block" if any(sign in pattern for sign in "*?[") else "no such block"
        raise ValueError(f"{quoted(pattern)}: {said}{_near_block(pattern)}")
    return found


def block_scales(weights: Mapping[str, float]) -> dict[str, float]:
    """`weights` by block. TE1 and TE2 go before TE, whatever their order. Raises ValueError for what is not a name."""
    for name in weights:
        block_name(name)
    both = {block: weights["TE"] for block in TEXT_ENCODERS if "TE" in weights}
    return {block: finite(weight) for block, weight in {**both, **weights}.items() if block != "TE"}


def block_name(name: str) -> str:
    """`name`, if it is a block's name or `TE`, and not a glob. Raises ValueError."""
    if name not in BLOCKS and name != "TE":
        raise ValueError(f"{quoted(name)}: no such block{_near_block(name)}")
    return name


def finite(weight: float, name: str = "a weight") -> float:
    """`weight`, if it is a number that a block can have, negative ones too; -0 is 0. Raises ValueError."""
    if not math.isfinite(weight):
        raise ValueError(f"{name} is {weight:g}: a finite number is expected")
    return weight + 0.0


def _near_block(name: str) -> str:
    return near_miss(name.upper(), (*BLOCKS, "TE"))
