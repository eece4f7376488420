"""What the file-level verbs share: arguments that explain themselves, one line for a mistake, whole files or none."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lorabuild.errors import JobError, UsageError
from lorabuild.files import remove_leftovers, staged
from lorabuild.header import Header, read_header
from lorabuild.lora.family import misfit
from lorabuild.names import quoted
from lorabuild.progress import megabytes
from lorabuild.writing import Tensor, write_file

__all__ = [
    "SUFFIX",
    "NewFile",
    "block_weights",
    "check_out",
    "header_of",
    "lora_header",
    "megabytes",
    "warn",
    "write_loras",
]

SUFFIX = ".safetensors"


def lora_header(path: Path) -> Header:
    """The header of a LoRA for SDXL. Raises JobError for what is none, in one line."""
    header = header_of(path)
    if said := misfit(header.tensors, header.metadata):
        raise JobError(f"{path}: {said}")
    return header


def header_of(path: Path) -> Header:
    """The header of a file. Raises JobError where there is none to read."""
    if path.is_dir():
        raise JobError(f"{path}: a folder; a .safetensors file was expected")
    if not path.exists():
        raise JobError(f"{path}: no such file")
    return read_header(path)


@dataclass(frozen=True)
class NewFile:
    """A LoRA that is to be written. BODY_SHA256 in its metadata stands for the sha256 of its body."""

    out: Path
    tensors: Iterable[Tensor]
    metadata: Mapping[str, str]


def write_loras(*files: NewFile) -> None:
    """Write files, each whole, and all of them or none: they get their names when the last one is written.

    A file that is replaced is not given up before the new one is on the disk.
    """
    with ExitStack() as stack:
        for new in files:
            folder = new.out.parent
            remove_leftovers(new.out, folder)
            part = stack.enter_context(staged(new.out, folder, durable=new.out.exists()))
            write_file(part, new.tensors, new.metadata)


def check_out(out: Path, *sources: Path) -> Path:
    """`out`, if it may be written. Raises UsageError for a name that UIs would not load, and for one of the sources."""
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{quoted(str(out))}: the output's name must be Unicode text") from None
    if out.is_dir():
        raise UsageError(f"{out}: a folder; the output is a file")
    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: the output's name must end in {SUFFIX}")
    if any(out.exists() and out.samefile(source) for source in sources if source.exists()):
        raise UsageError(f"{out}: is the input itself; write to another file")
    return out


def block_weights(parts: Iterable[str], where: str) -> dict[str, float]:
    """`OUT01=0.5`, `TE=0` as a table. Raises UsageError, which says `where` they stood."""
    found: dict[str, float] = {}
    for part in parts:
        name, _, number = (word.strip() for word in part.partition("="))
        if name in found:
            raise UsageError(f"{where}: {name} stands twice")
        try:
            found[name] = float(number)
        except ValueError:
            raise UsageError(f'{where}: "{part}": expected a block and a number, as in OUT01=0.5') from None
    return found


def warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")
