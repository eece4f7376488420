"""`lorabuild show`: what a LoRA file is, what it says of itself, whether that is true, and which loaders take it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorabuild.hashing import sha256_from
from lorabuild.header import Header
from lorabuild.lora.amend import hashes
from lorabuild.lora.chopping import Blocks
from lorabuild.lora.layers import Layer, read_layers
from lorabuild.lora.loaders import Verdict, verdicts
from lorabuild.lora.modules import read_alphas
from lorabuild.verbs.common import Parser, header_of, megabytes

HELP = """\
Shows header, hashes and metadata of a LoRA file, and what ComfyUI, Forge, diffusers and InvokeAI make of it.

  lorabuild show some.safetensors
  lorabuild show some.safetensors --json"""

# What one looks for first; the rest follows by name.
FIRST = (
    "modelspec.title", "ss_output_name", "modelspec.architecture", "ss_base_model_version", "ss_sd_model_name",
    "modelspec.trigger_phrase", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_steps",
)  # fmt: skip
WIDTH, NAMES, TAGS = 100, 3, 10


def parser() -> Parser:
    found = Parser(prog="lorabuild show", description=HELP)
    found.add_argument("file", metavar="FILE", type=Path, help="a .safetensors file")
    found.add_argument("--all", action="store_true", help="metadata in full, not a line each")
    found.add_argument("--json", action="store_true", help="everything as JSON")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    facts = _facts(options.file, header_of(options.file))
    print(json.dumps(facts, indent=1, ensure_ascii=False) if options.json else "\n".join(_page(facts, options.all)))
    return 0


def _facts(path: Path, header: Header) -> dict[str, Any]:
    layers, others = read_layers(header.tensors)
    file, body = sha256_from(path), sha256_from(path, header.data_start)
    alphas = read_alphas(path, header.tensors)
    return {
        "file": str(path),
        "size": header.size,
        "tensors": len(header.tensors),
        "dtypes": dict(Counter(info.dtype for info in header.tensors.values())),
        "layers": dict(Counter(layer.flavour for layer in layers)),
        "ranks": _range(_ranks(layers)),
        "alphas": _range(alphas.values()),
        "others": len(others),
        "blocks": Blocks.read(header.tensors).present,
        "sha256": file,
        "autov2": file[:10],
        "body_sha256": body,
        "autov3": body[:12],
        "hashes": {key: _judged(header.metadata.get(key), right) for key, right in hashes(body).items()},
        "loaders": [asdict(one) for one in verdicts(header.tensors, header.metadata, alphas)] if layers else [],
        "metadata": dict(header.metadata),
    }


def _ranks(layers: Sequence[Layer]) -> Iterator[int]:
    for layer in layers:
        if layer.flavour == "lora" and layer.infos["down"].shape:
            yield layer.infos["down"].shape[0]


def _range(numbers: Any) -> list[float] | None:
    found = sorted(numbers)
    return [found[0], found[-1]] if found else None


def _judged(said: str | None, right: str) -> str:
    return "absent" if said is None else "right" if said == right else "stale"


def _page(facts: Mapping[str, Any], whole: bool) -> Iterator[str]:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in facts["dtypes"].items())
    layers = ", ".join(f"{count} {flavour}" for flavour, count in facts["layers"].items()) or "no LoRA layers"
    yield from _rows(
        {
            facts["file"]: megabytes(facts["size"]),
            "tensors": f"{facts['tensors']} ({dtypes})" if dtypes else "none",
            "layers": f"{layers}; {facts['others']} other tensors" if facts["others"] else layers,
            "ranks": _shown_range(facts["ranks"]),
            "alpha": _shown_range(facts["alphas"]),
            "blocks": " ".join(facts["blocks"]) or "none",
            "sha256": facts["sha256"],
            "AutoV2": facts["autov2"],
            "body sha256": facts["body_sha256"],
            "AutoV3": facts["autov3"],
            **facts["hashes"],
        }
    )
    if facts["loaders"]:
        yield ""
        yield from _rows({one["loader"]: _verdict(Verdict(**one)) for one in facts["loaders"]})
    yield ""
    yield from _rows(_metadata(facts["metadata"], whole) or {"metadata": "none"})


def _shown_range(numbers: Sequence[float] | None) -> str:
    if not numbers:
        return "-"
    least, most = numbers
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _verdict(verdict: Verdict) -> str:
    said = verdict.loads
    if verdict.reason:
        said += f": {verdict.reason}"
    if verdict.unmatched:
        names = ", ".join(verdict.unmatched[:NAMES]) + ", …" * (len(verdict.unmatched) > NAMES)
        said += f" [{len(verdict.unmatched)} keys: {names}]"
    return said + (f" ({verdict.note})" if verdict.note else "")


def _metadata(metadata: Mapping[str, str], whole: bool) -> dict[str, str]:
    keys = [*(key for key in FIRST if key in metadata), *sorted(metadata.keys() - {*FIRST})]
    found = {key: _tags(metadata[key]) if key == "ss_tag_frequency" and not whole else metadata[key] for key in keys}
    return {key: value if whole or len(value) <= WIDTH else f"{value[: WIDTH - 1]}…" for key, value in found.items()}


def _tags(text: str) -> str:
    """The tags that stand most often, all folders together; as it is, what is no such table."""
    counts: Counter[str] = Counter()
    try:
        for tags in json.loads(text).values():
            counts.update({str(tag): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError):
        return text
    return ", ".join(f"{tag} ({count})" for tag, count in counts.most_common(TAGS))


def _rows(rows: Mapping[str, str]) -> Iterator[str]:
    """Two columns. What a file says must not reach a terminal as commands: control characters are escaped."""
    printable = {_printable(key): _printable(value) for key, value in rows.items()}
    width = min(max(map(len, printable)), 40)
    for key, value in printable.items():
        yield f"{key:{width}}  {value}"


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
