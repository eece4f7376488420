"""`lorabuild chop`: keep, scale or drop the blocks of any LoRA file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError, UsageError, in_file
from lorabuild.header import Header
from lorabuild.lora.amend import amended
from lorabuild.lora.chopping import Blocks, chop_warnings, chopped
from lorabuild.names import idle_weights, named_blocks, resolve_chop
from lorabuild.vectors import block_vector
from lorabuild.verbs.common import NewFile, block_weights, check_out, lora_header, megabytes, warn, write_loras
from lorabuild.verbs.parser import Parser

HELP = """\
Keeps the named blocks: INP00..INP08 MID00..MID02 OUT00..OUT08 TE1 TE2, TE for both; globs (IN*) and
negations (!OUT08, quoted in most shells) work. What is in no block (time_embed, unknown) stays.

  lorabuild chop big.safetensors --keep TE,OUT01 -o small.safetensors
  lorabuild chop big.safetensors --weights OUT01=0.5,TE=0.8 -o soft.safetensors
  lorabuild chop big.safetensors --vector "1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0" -o small.safetensors
  lorabuild chop big.safetensors --vector SDXL-LyC-OUTALL -o out.safetensors"""


def parser() -> Parser:
    found = Parser(prog="lorabuild chop", description=HELP)
    found.add_argument("file", metavar="FILE", type=Path, help="the LoRA, .safetensors")
    found.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the new file")
    found.add_argument("--keep", metavar="BLOCKS", help="blocks that stay, joined by commas, in order")
    found.add_argument("--vector", help="12, 20, 21 or 22 numbers, a preset of Inspire-Pack, or its notation with %%")
    found.add_argument(
        "--vector-style",
        choices=("resize_lora", "inspire"),
        help="what a first number other than 1 is: a factor of the U-Net, or the weight of the text encoders",
    )
    found.add_argument("--weights", metavar="BLOCK=W,…", help="scale what a block does: 0.5 is half, linear")
    found.add_argument("--allow-empty", action="store_true", help="a file without any tensor is not an error")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(_joined(args))
    out = check_out(options.out, options.file)
    header = lora_header(options.file)
    blocks = Blocks.read(header.tensors)
    table = _table(options)
    try:
        weights = resolve_chop(table, blocks.present)
    except ValueError as error:
        raise UsageError(str(error).replace("vector_style = ", "--vector-style ")) from None  # it speaks of a manifest

    with in_file(options.file):
        body = list(chopped(options.file, header.tensors, blocks, weights))
        if not body and not options.allow_empty:
            raise JobError(f"nothing would be left: {blocks} (--allow-empty permits it)")
        write_loras(NewFile(out, body, _metadata(header, weights, out.stem)))

    gone = [block for block in blocks.present if weights[block] == 0]
    print(
        f"{out}: {len(body)} of {len(header.tensors)} tensors, {megabytes(out.stat().st_size)} of "
        f"{megabytes(header.size)}; dropped {', '.join(gone) or 'nothing'}"
    )
    named, idle = named_blocks(table, blocks.present), idle_weights(table, blocks.present)
    for text in chop_warnings(header.tensors, blocks, weights, named, idle):
        warn(text)
    return 0


def _joined(args: Sequence[str]) -> list[str]:
    """`--vector -1,0,…` as one word: argparse takes what begins with a minus for an option."""
    found = list(args)
    for option in ("--vector", "--weights"):
        if option in found[:-1]:
            place = found.index(option)
            found[place : place + 2] = [f"{option}={found[place + 1]}"]
    return found


def _table(options: Any) -> dict[str, Any]:
    """The options as a manifest's [chop] has them. Raises UsageError."""
    if options.keep is None and options.vector is None and options.weights is None:
        raise UsageError("say what stays: --keep, --vector or --weights")
    if options.vector_style and options.vector is None:
        raise UsageError("--vector-style says how to read a --vector, and there is none: leave it out, or give one")
    keep = None if options.keep is None else [one.strip() for one in options.keep.split(",") if one.strip()]
    return {
        "keep": keep,
        "vector": options.vector,
        "vector_style": options.vector_style,
        "weights": block_weights(filter(str.strip, (options.weights or "").split(",")), "--weights"),
    }


def _metadata(header: Header, weights: Mapping[str, float], name: str) -> dict[str, str]:
    facts = {"block_vector_string": block_vector(weights), "lorabuild.chop": {"keep": weights}}
    return amended(header.metadata, name, facts)
