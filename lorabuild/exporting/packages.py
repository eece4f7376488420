"""Make ready what an export writes: the file in the form that a program takes, and its sidecars, by the program's layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError, UsageError
from lorabuild.exporting.artifacts import Lora
from lorabuild.exporting.peft import FILE_NAME, peft_file
from lorabuild.exporting.sidecars import About, about, card, user_metadata
from lorabuild.hashing import sha256_from
from lorabuild.header import Header, read_header
from lorabuild.lora.amend import amended
from lorabuild.lora.loaders import verdicts
from lorabuild.lora.modules import read_alphas
from lorabuild.names import quoted
from lorabuild.verbs.common import SUFFIX, NewFile, lora_header, write_loras
from lorabuild.writing import verbatim

Content = bytes | Path  # a small file itself, or the file that is copied

# What prompts and file systems give a meaning of their own.
_UNFIT = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*,]|^[.\s]|[.\s]$|^$')


@dataclass(frozen=True)
class Package:
    """What is to stand in `folder`: the weights, a copy of `source`, and sidecars by name.

    `told` becomes the JSON beside the weights; `origin` names the project, or the file, that all this comes from.
    """

    lora: Lora
    folder: Path
    weights: str
    source: Path
    sha256: str
    size: int
    sidecars: Mapping[str, Content]
    told: Mapping[str, Any]
    origin: str
    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.folder / self.weights

    @property
    def card(self) -> str:
        """The JSON beside the weights."""
        return f"{Path(self.weights).stem}.json"


@dataclass(frozen=True)
class Layout:
    """A program that LoRAs are exported for. `inside` is where it keeps them in its own folder, `loader` whose verdict counts.

    With `own_folder`, each LoRA gets a folder of its name, `extras` are its sidecars but for JSON and preview.
    """

    loader: str = ""
    inside: str = ""
    own_folder: bool = False
    weights: str = "{name}" + SUFFIX
    extras: Callable[[About, str], dict[str, str]] = lambda one, name: {}


def _trigger_file(one: About, name: str) -> dict[str, str]:
    """ComfyUI-Custom-Scripts shows it as the LoRA's notes, others take it for the words to type."""
    return {f"{name}.txt": f"{one.trigger}\n"} if one.trigger else {}


def _card(one: About, name: str) -> dict[str, str]:
    return {"README.md": card(one)}


def _card_with_usage(one: About, name: str) -> dict[str, str]:
    usage = f'pipeline.load_lora_weights("{name}")  # of a StableDiffusionXLPipeline; this folder'
    return {"README.md": card(one, usage)}


LAYOUTS = {
    "a1111": Layout("Forge", "models/Lora"),
    "comfy": Layout("ComfyUI", "models/loras", extras=_trigger_file),
    "diffusers": Layout("diffusers", own_folder=True, weights=FILE_NAME, extras=_card_with_usage),
    "folder": Layout(own_folder=True, extras=_card),
}


def folder_of(to: str, folder: Path) -> Path:
    """`folder`, or where the program keeps LoRAs in it if it is the program's own."""
    inside = folder / LAYOUTS[to].inside
    return inside if LAYOUTS[to].inside and inside.is_dir() else folder


def package(lora: Lora, to: str, folder: Path, rename: str | None, weight: float, scratch: Path) -> Package:
    """The LoRA as the program `to` is to find it below `folder`. What must be rewritten is written in `scratch`.

    Raises UsageError for a name that programs cannot load, JobError for what is no LoRA for SDXL, or has no place in diffusers.
    """
    layout, name = LAYOUTS[to], rename or lora.name
    if found := _UNFIT.search(name):
        said = f"has {quoted(found[0])}" if found[0] else "is empty"
        raise UsageError(f"{quoted(name)}: cannot be the name of a LoRA, it {said}: --as NAME gives another")
    header, source = lora_header(lora.path), lora.path
    if to == "diffusers":
        source = scratch / FILE_NAME
        write_loras(peft_file(lora.path, header, source, name))
    elif rename and rename != header.metadata.get("ss_output_name"):
        source = scratch / f"renamed{SUFFIX}"
        write_loras(_renamed(lora.path, header, source, name))
    header = read_header(source)
    warnings = _warnings(lora.path, source, header, layout)
    sha256 = sha256_from(source)
    one = about(header, name, sha256, sha256_from(source, header.data_start), weight)
    weights = layout.weights.format(name=name)
    stem = Path(weights).stem
    sidecars: dict[str, Content] = {file: text.encode() for file, text in layout.extras(one, name).items()}
    if lora.preview:
        sidecars[f"{stem}.png"] = lora.preview
    return Package(
        lora,
        folder / name if layout.own_folder else folder,
        weights,
        source,
        sha256,
        header.size,
        sidecars,
        user_metadata(one),
        lora.project or lora.path.name,
        warnings,
    )


def _renamed(path: Path, header: Header, out: Path, name: str) -> NewFile:
    """The same tensors under a header that says the new name: by it A1111 and Forge call a LoRA."""
    metadata = header.metadata
    was = metadata.get("ss_output_name")
    facts = {"modelspec.title": name} if metadata.get("modelspec.title") in (was, None) else {}
    return NewFile(out, list(verbatim(path, header.tensors)), amended(metadata, name, facts))


def _warnings(path: Path, source: Path, header: Header, layout: Layout) -> tuple[str, ...]:
    """What the program will make of it, if that is not all. Raises JobError for what diffusers would not load."""
    found = {
        one.loader: one for one in verdicts(header.tensors, header.metadata, read_alphas(source, header.tensors))
    }.get(layout.loader)
    if found is None or found.loads == "yes":
        return ()
    if layout.weights == FILE_NAME and found.loads == "no":
        raise JobError(f"{path}: diffusers would not load it: {found.reason}")
    said = "loads it in part" if found.loads == "partly" else "does not load it"
    return (f"{path}: {layout.loader} {said}: {found.reason}",)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode(errors="backslashreplace")
