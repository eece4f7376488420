"""What the file-level verbs share: arguments that explain themselves, one line for a mistake, whole files or none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from lorabuild.errors import JobError, UsageError
from lorabuild.files import staged
from lorabuild.header import Header, Tensor, read_header, write_file
from lorabuild.lora.family import misfit
from lorabuild.names import quoted

SUFFIX = ".safetensors"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and leaves with the exit code of a usage error."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


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


def write_lora(out: Path, tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file `out`, whole or not at all; BODY_SHA256 in its metadata stands for the sha256 of its body.

    A file that is replaced is not given up before the new one is on the disk.
    """
    with staged(out, out.parent, durable=out.exists()) as part:
        write_file(part, tensors, metadata)


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
    found = {}
    for part in parts:
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            found[name] = float(number)
        except ValueError:
            raise UsageError(f'{where}: "{part}": expected a block and a number, as in OUT01=0.5') from None
    return found


def megabytes(size: float) -> str:
    """A file's size for people: `112.4 MB`; of a small one `21.5 kB`."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")
