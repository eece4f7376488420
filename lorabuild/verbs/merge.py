"""`lorabuild merge`: add LoRA files up, each with its weight: exactly, whatever their ranks and flavours."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError, UsageError
from lorabuild.hashing import sha256_from
from lorabuild.header import Header
from lorabuild.lora.amend import amended, making, of_several
from lorabuild.lora.merge import Plan, Source, plan_merge
from lorabuild.names import block_scales, finite
from lorabuild.tensors import SAVE_DTYPES
from lorabuild.verbs.common import SUFFIX, NewFile, block_weights, check_out, lora_header, megabytes, warn, write_loras
from lorabuild.verbs.parser import Parser
from lorabuild.writing import FileRange, Tensor

TAGS = "ss_tag_frequency"
SHOWN = 3  # names in a warning

HELP = """\
Adds up what the files do, each times its weight: FILE[:WEIGHT[:BLOCK=W,BLOCK=W...]]. A weight is any
number, 1 if none is given. Blocks multiply it: INP00..INP08 MID00..MID02 OUT00..OUT08 TE1 TE2, TE for
both. Ranks add up, so that nothing is lost; `lorabuild resize` makes the file small again.

  lorabuild merge style.safetensors:0.7 face.safetensors:0.3 -o both.safetensors
  lorabuild merge style.safetensors:1:TE=0,OUT01=0.5 face.safetensors -o both.safetensors
  lorabuild merge new.safetensors old.safetensors:-1 -o what-changed.safetensors"""

_BLOCKS = re.compile(r"[^:/\\]*=[^:/\\]*")


def parser() -> Parser:
    found = Parser(prog="lorabuild merge", description=HELP)
    found.add_argument("files", metavar="FILE:WEIGHT", nargs="+", help="a LoRA, .safetensors, and its weight")
    found.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the new file")
    found.add_argument(
        "--dtype", choices=list(SAVE_DTYPES), default="fp16", help="of the new tensors (default: %(default)s)"
    )
    return found


@dataclass(frozen=True)
class Argument:
    """A file as the user named it. `said` is whether a weight stood there."""

    path: Path
    weight: float
    blocks: Mapping[str, float]
    said: bool


def main(args: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(args)
    files = [parse_argument(text) for text in options.files]
    if len(files) == 1 and not files[0].said:
        raise UsageError(f"{files[0].path}: nothing to add to it: name another file, or a weight, as in FILE:0.5")
    out = check_out(options.out, *(one.path for one in files))
    headers = [lora_header(one.path) for one in files]

    import numpy as np

    from lorabuild.nn.factors import scale_of
    from lorabuild.nn.merge import layer_tensors, linear_tensor, merged_alpha

    sources = [
        Source(one.path, header.tensors, one.weight, one.blocks, header.metadata)
        for one, header in zip(files, headers, strict=True)
    ]
    plan = plan_merge(sources, scale_of)
    dtype = SAVE_DTYPES[options.dtype]
    alpha = merged_alpha(plan.layers, dtype)
    coarse: list[str] = []
    body: list[Tensor] = [
        *(tensor for layer in plan.layers for tensor in layer_tensors(layer, alpha, dtype, coarse.append)),
        *(linear_tensor(one, dtype) for one in plan.sums),
        *(
            (key, info.dtype, info.shape, FileRange(path, info.start, info.stop))
            for key, (path, info) in plan.kept.items()
        ),
    ]
    if not body:
        raise JobError("nothing would be left: all that the files hold is multiplied by 0")
    metadata = _metadata(headers, _history(files, headers), alpha, out.stem)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is told when it is rounded
        write_loras(NewFile(out, body, metadata))

    print(f"{out}: {_summary(plan, len(files))}, {megabytes(out.stat().st_size)}")
    if coarse:
        warn(f"fp16 is too coarse for {_names(coarse)}, where the effect is tiny: --dtype fp32 keeps it")
    if plan.kept:
        warn(f"of no kind known here, so not weighted: {_names(list(plan.kept))}")
    return 0


def parse_argument(text: str) -> Argument:
    """FILE[:WEIGHT[:BLOCK=W,BLOCK=W…]], read from the right: paths may hold colons. Raises UsageError.

    What is a file as a whole is one, whatever its name looks like.
    """
    rest, blocks, weight = text, {}, None
    head, colon, last = rest.rpartition(":")
    if colon and not _is_file(rest) and _BLOCKS.fullmatch(last):
        rest, blocks = head, _blocks(last, text)
    head, colon, last = rest.rpartition(":")
    if colon and not _is_file(rest):
        weight = _number(last)
        rest = rest if weight is None else head
    if f"{SUFFIX}:" in rest and not _is_file(rest):
        wrong = rest.rpartition(f"{SUFFIX}:")[2]
        raise UsageError(f'{text}: "{wrong}" is no weight: expected FILE:0.7 or FILE:0.7:OUT01=0.5,TE=0')
    try:
        return Argument(
            Path(rest), finite(1.0 if weight is None else weight), blocks, weight is not None or bool(blocks)
        )
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from None


def _is_file(text: str) -> bool:
    return bool(text) and Path(text).is_file()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _blocks(text: str, argument: str) -> dict[str, float]:
    try:
        return block_scales(block_weights(text.split(","), argument))
    except ValueError as error:
        raise UsageError(f"{argument}: {error}") from None


def _summary(plan: Plan, files: int) -> str:
    """What the new file holds: `12 layers of 2 files, 96 ranks, 1 whole`."""
    layers, whole = len(plan.layers), sum(layer.rank is None for layer in plan.layers)
    said = (
        f"{_count(layers, 'layer')} of {_count(files, 'file')}, {sum(layer.rank or 0 for layer in plan.layers)} ranks"
    )
    return said + (f", {whole} whole" if whole else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _history(files: Sequence[Argument], headers: Sequence[Header]) -> list[dict[str, Any]]:
    """What went into the file, by content: names of files, no paths. What each tells of its own making stands with it."""
    digests: dict[Path, str] = {}
    for one, header in zip(files, headers, strict=True):
        if one.path not in digests:
            digests[one.path] = sha256_from(one.path, header.data_start)
    return [
        {"file": one.path.stem, "sha256": digests[one.path], "weight": one.weight, "blocks": dict(one.blocks)}
        | ({"metadata": told} if (told := making(header.metadata)) else {})
        for one, header in zip(files, headers, strict=True)
    ]


def _metadata(
    headers: Sequence[Header], history: Sequence[Mapping[str, Any]], alpha: float, name: str
) -> dict[str, str]:
    names = [_title(header) or one["file"] for header, one in zip(headers, history, strict=True)]
    facts = {
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": alpha,
        "modelspec.title": name,
        "modelspec.merged_from": ", ".join(names),
        "lorabuild.merge": list(history),
    }
    if tags := _all_tags(header.metadata.get(TAGS) for header in headers):
        facts[TAGS] = tags
    kept = of_several([header.metadata for header in headers])
    return amended({key: value for key, value in kept.items() if key != TAGS}, name, facts)


def _title(header: Header) -> str:
    """The name that a file was saved under, without folders."""
    return re.split(r"[/\\]", header.metadata.get("ss_output_name", ""))[-1].strip()


def _all_tags(texts: Iterable[str | None]) -> dict[str, dict[str, float]]:
    """dir -> tag -> count of all files: counts add up. What is no such table is passed over."""
    found: dict[str, dict[str, float]] = {}
    for text in texts:
        try:
            table = json.loads(text or "{}")
        except (ValueError, RecursionError):
            continue
        for folder, tags in table.items() if isinstance(table, dict) else ():
            for tag, count in tags.items() if isinstance(tags, dict) else ():
                if type(count) in (int, float) and math.isfinite(count):
                    counts = found.setdefault(folder, {})
                    counts[tag] = counts.get(tag, 0) + count
    return found
