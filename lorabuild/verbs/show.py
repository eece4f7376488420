"""`lorabuild show`: what a LoRA file holds and says of itself, its hashes, and what each loader makes of it."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Any
from unicodedata import category

from lorabuild.errors import JobError
from lorabuild.hashing import sha256_from
from lorabuild.header import Header
from lorabuild.lora.amend import hashes
from lorabuild.lora.canonical import canonical
from lorabuild.lora.chopping import Blocks
from lorabuild.lora.layers import Layer, read_layers, split_key, weight_shape
from lorabuild.lora.loaders import verdicts
from lorabuild.lora.modules import adapted_modules, lora_file, read_alphas
from lorabuild.lora.sdxl_names import NAMINGS, known_modules
from lorabuild.verbs.common import header_of, megabytes
from lorabuild.verbs.parser import Parser

HELP = """\
What a LoRA file holds: layers, names, ranks, alpha, blocks; its hashes, and whether those in its metadata are right;
what its metadata says; and whether ComfyUI, Forge, diffusers and InvokeAI load it. Nothing is changed.

  lorabuild show some.safetensors
  lorabuild show some.safetensors --all      all metadata, at full length"""

WIDTH, LABEL_WIDTH = 100, 32
FIRST_KEYS, FIRST_TAGS = 3, 10
AUTOV2, AUTOV3 = 10, 12  # Civitai's hashes: so many hex digits of the file's sha256, of its body's

# Metadata in the order in which one asks for it. Then comes what lorabuild wrote; the rest only with --all.
KNOWN = (
    "modelspec.title", "ss_output_name", "modelspec.author", "modelspec.description", "modelspec.license",
    "modelspec.architecture", "ss_base_model_version", "ss_sd_model_name", "modelspec.trigger_phrase", "modelspec.tags",
    "ss_tag_frequency", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
    "ss_steps", "ss_epoch", "ss_num_train_images", "ss_resolution", "ss_training_comment", "block_vector_string",
)  # fmt: skip
OURS = "lorabuild."
SAID = {"yes": "loads", "partly": "loads in part", "no": "does not load"}

Row = tuple[str, str]


def parser() -> Parser:
    found = Parser(prog="lorabuild show", description=HELP)
    found.add_argument("file", metavar="FILE", type=Path, help="a LoRA, .safetensors")
    found.add_argument("--json", action="store_true", help="all of it as JSON, with every key that a loader leaves")
    found.add_argument("--all", action="store_true", help="every key of the metadata, and long values whole")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    found = facts(options.file, header_of(options.file))
    if options.json:
        print(json.dumps(found, indent=2).replace("\x7f", "\\u007f"))  # the one control character that JSON leaves
        return 0
    encoding = sys.stdout.encoding or "utf-8"
    for line in _page(found, options.all):
        print(line.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def facts(path: Path, header: Header) -> dict[str, Any]:
    """All that can be told of a file, as plain values: the object of --json, and what the page is made of."""
    tensors = header.tensors
    layers, others = read_layers(tensors)
    modules, alphas = adapted_modules(lora_file(tensors, {})), read_alphas(path, tensors)
    found_hashes = _hashes(path, header.data_start)
    judged = verdicts(tensors, header.metadata, alphas) if modules else ()  # of what is no LoRA nothing is asked
    return {
        "file": str(path),
        "size": header.size,
        "header_size": header.data_start,
        "tensors": len(tensors),
        "dtypes": _counted(info.dtype for info in tensors.values()),
        "layers": _counted(layer.flavour for layer in layers),
        "in_no_layer": _counted((split_key(key) or ("", "unknown"))[1] for key in others),
        **_shapes(layers),
        "names": _counted(map(_naming, modules)),
        "alpha": _alpha(layers, alphas),
        "blocks": Blocks.read(tensors).present if modules else [],
        "hashes": found_hashes,
        "metadata_hashes": _in_metadata(header.metadata, found_hashes["body_sha256"]),
        "metadata": header.metadata,
        "loaders": [asdict(verdict) for verdict in judged],
    }


def _counted(things: Iterator[str]) -> dict[str, int]:
    """Thing -> how many there are, the most common first."""
    return dict(Counter(things).most_common())


def _shapes(layers: Sequence[Layer]) -> dict[str, Any]:
    """The range of ranks, and what is wrong with layers whose tensors do not fit together."""
    ranks, misfits = [], []
    for layer in layers:
        try:
            weight_shape(layer)
        except JobError as error:
            misfits.append(str(error))
        else:
            ranks += [layer.rank] if layer.rank else []
    return {"misfits": misfits, "ranks": {"min": min(ranks), "max": max(ranks)} if ranks else None}


def _naming(module: str) -> str:
    naming = next((naming for naming in NAMINGS if module in known_modules((naming,))), None)
    return naming or ("other names of SDXL" if canonical(module) else "unknown")


def _alpha(layers: Sequence[Layer], alphas: Mapping[str, float]) -> dict[str, Any]:
    """The values, without repeats; how many layers have no alpha, and how many have one that is no finite number."""
    named = [layer.name for layer in layers if "alpha" in layer.keys]
    values = [value for name in named if math.isfinite(value := alphas.get(name, math.nan))]
    return {"values": sorted(set(values)), "absent": len(layers) - len(named), "broken": len(named) - len(values)}


def _hashes(path: Path, data_start: int) -> dict[str, str]:
    with ThreadPoolExecutor(2) as pool:  # digesting takes longer than reading, and leaves Python to others meanwhile
        whole, body = pool.map(sha256_from, (path, path), (0, data_start))
    return {"sha256": whole, "autov2": whole[:AUTOV2], "body_sha256": body, "autov3": body[:AUTOV3]}


def _in_metadata(metadata: Mapping[str, str], body: str) -> dict[str, str]:
    """Whether the hashes of the body that stand in the metadata are "right", "stale" or "absent"."""
    found = {}
    for key in hashes(body):
        says = metadata.get(key, "").strip().lower().removeprefix("0x")
        found[key] = "absent" if key not in metadata else "right" if says == body else "stale"
    return found


# The page.


def _page(found: Mapping[str, Any], everything: bool) -> Iterator[str]:
    yield printable(found["file"])
    for rows in (_contents(found), _hash_rows(found), _verdicts(found)):
        yield from ("", *_wrapped(list(rows)))
    yield from ("", *_metadata(found["metadata"], everything))


def _contents(found: Mapping[str, Any]) -> Iterator[Row]:
    size, head, ranks = found["size"], found["header_size"], found["ranks"]
    yield "size", f"{megabytes(size)} ({size:,} bytes), of which the header {megabytes(head)}"
    yield "tensors", f"{found['tensors']:,}" + (f": {_listed(found['dtypes'])}" if found["dtypes"] else "")
    yield "layers", _listed(found["layers"]) or "no LoRA layers"
    if found["in_no_layer"]:
        yield "in no layer", _listed(found["in_no_layer"])
    if misfits := found["misfits"]:
        yield "broken", misfits[0] + (f" and {len(misfits) - 1:,} more" if len(misfits) > 1 else "")
    if found["names"]:
        yield "names", "; ".join(f"{count:,} {naming}" for naming, count in found["names"].items())
    if ranks:
        low, high = ranks.values()
        yield "ranks", f"{low}" if low == high else f"{low} to {high}"
    if found["layers"]:
        yield "alpha", _alpha_said(**found["alpha"])
    if found["names"]:
        yield "blocks", " ".join(found["blocks"]) or "none"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {thing}" for thing, count in counts.items())


def _alpha_said(values: Sequence[float], absent: int, broken: int) -> str:
    said = []
    if len(values) > 1:
        said.append(f"varies: {len(values):,} values, {values[0]:g} to {values[-1]:g}")
    elif values:
        said.append(f"{values[0]:g}" + ("" if absent or broken else ", one for the file"))
    if broken:
        said.append(f"no finite number in {_layers(broken)}")
    if absent:
        said.append(f"none in {_layers(absent)}" if said else "none: loaders take a layer as it is")
    return "; ".join(said)


def _layers(count: int) -> str:
    return f"{count:,} layer" + ("s" if count > 1 else "")


def _hash_rows(found: Mapping[str, Any]) -> Iterator[Row]:
    labels = ("sha256", "AutoV2", "sha256 of the body", "AutoV3")
    yield from zip(labels, found["hashes"].values(), strict=True)
    for key, state in found["metadata_hashes"].items():
        says = f": it says {_shortened(found['metadata'][key], 70)}" if state == "stale" else ""
        yield key, f"{state}{says}"


def _verdicts(found: Mapping[str, Any]) -> Iterator[Row]:
    if not found["loaders"]:
        yield "loaders", "not asked: this is no LoRA"
    for one in found["loaders"]:
        yield one["loader"], SAID[one["loads"]] + (f": {one['reason']}" if one["reason"] else "")
        if keys := one["unmatched"]:
            more = f" and {len(keys) - FIRST_KEYS:,} more" if len(keys) > FIRST_KEYS else ""
            yield "", f"{len(keys):,} unmatched: {', '.join(keys[:FIRST_KEYS])}{more}"
        if one["note"]:
            yield "", f"note: {one['note']}"


def _metadata(metadata: Mapping[str, str], everything: bool) -> Iterator[str]:
    ours = sorted(key for key in metadata if key.startswith(OURS))
    known = [key for key in (*KNOWN, *ours) if key in metadata]
    others = sorted(metadata.keys() - set(known))
    shown = [(_shortened(key, LABEL_WIDTH), key) for key in (known + others if everything else known)]
    width = max((len(label) for label, _ in shown), default=0)
    if everything:
        yield from (f"{label:{width}}  {printable(metadata[key])}" for label, key in shown)
    elif shown:
        yield from _wrapped([(label, _in_short(key, metadata[key], WIDTH - width - 2)) for label, key in shown])
    if not metadata:
        yield "no metadata"
    elif others and not everything:
        yield f"{len(others):,} more in the metadata: --all shows them"


def _in_short(key: str, text: str, width: int) -> str:
    try:
        return READ[key](json.loads(text))
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return _shortened(text, width)  # not one of READ, or not what its name says


def _tags(folders: Mapping[str, Mapping[str, int]]) -> str:
    """The most frequent tags of all folders together."""
    counts: Counter[str] = Counter()
    for folder in folders.values():
        for tag, count in folder.items():
            counts[tag] += int(count)
    tags = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{_shortened(tag, LABEL_WIDTH)} {count:,}" for tag, count in tags[:FIRST_TAGS]]
    return ", ".join(said) + (f" and {len(tags) - len(said):,} more" if len(said) < len(tags) else "")


def _kept(chop: Mapping[str, Mapping[str, float]]) -> str:
    """The blocks that a chop kept, with the weights of those that it scaled."""
    kept = [block if weight == 1 else f"{block}={weight:g}" for block, weight in chop["keep"].items() if weight]
    return f"keeps {', '.join(kept) or 'no block'}"


READ = {"ss_tag_frequency": _tags, "lorabuild.chop": _kept}


def _wrapped(rows: Sequence[Row]) -> Iterator[str]:
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        lines = wrap(printable(text), WIDTH - width - 2, break_long_words=False, break_on_hyphens=False)
        for place, line in enumerate(lines or [""]):
            yield f"{'' if place else label:{width}}  {line}".rstrip()


def _shortened(text: str, width: int) -> str:
    """`text` on one line of `width`; where it is cut, its length is told."""
    shown = printable(text[: width + 1])
    if len(shown) <= width:
        return shown
    length = f"… ({len(text):,} characters)" if width > LABEL_WIDTH else "…"
    return shown[: width - len(length)] + length


def printable(text: str) -> str:
    """`text` with escapes for what a terminal would obey or not show: control characters, signs of direction."""
    if text.isprintable():
        return text
    signs = (sign if sign.isprintable() or category(sign) == "Zs" else ascii(sign)[1:-1] for sign in text)
    return "".join(signs)
