"""Read a safetensors header without loading tensors.

The format (github.com/huggingface/safetensors, README "Format"): 8 bytes little-endian length of the header, the header
as JSON, then the tensors' bytes, without gaps.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lorabuild.errors import JobError

# Width of an element, as the format's own list has them.
DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
MAX_HEADER_BYTES = 100_000_000  # the library's limit
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save's zip, bare pickle protocols


class FormatError(JobError):
    """A file is not the safetensors file that it should be: one line, which names the file and what is wrong."""


class TensorInfo(NamedTuple):
    """Where a tensor lies: `start` and `stop` are absolute offsets in the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """All that a file says of itself. `tensors` are in file order; `size` is that of the file in bytes."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    size: int


def read_header(path: Path | str, shown: str | None = None) -> Header:
    """The header of the safetensors file at `path`, which messages call `shown`. Reads no tensor.

    Strict: raises FormatError unless every byte after the header belongs to exactly one tensor and every size is that
    of its dtype and shape. A pickle is refused by name. Raises OSError if the file cannot be read.
    """
    shown = shown or str(path)
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: a pipe would be waited for
        raise FormatError(f"{shown}: not a regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        text, data_start = _header_text(file, size, shown)
    try:
        entries = _parse(text)
        metadata = _metadata(entries.pop("__metadata__", {}))
        tensors = _placed({name: _tensor(name, entry, data_start) for name, entry in entries.items()}, data_start, size)
    except ValueError as error:
        raise FormatError(f"{shown}: not a valid safetensors file: {error}") from None
    return Header(tensors, metadata, data_start, size)


def byte_size(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor. Raises ValueError for an unknown dtype, a shape that is none, or one beyond 64 bits."""
    if dtype not in DTYPE_BITS:
        raise ValueError(f"unknown dtype {short(dtype)}")
    bits = DTYPE_BITS[dtype]
    for length in shape:
        if type(length) is not int or length < 0:  # a bool is an int, too
            raise ValueError(f"a shape holds {short(length)}")
        bits *= length
        if bits >= 1 << 66:
            raise ValueError("a shape has more than 2^63 bytes")
    if bits % 8:
        raise ValueError(f"{dtype} of this shape does not fill whole bytes")
    return bits // 8


def _header_text(file: BinaryIO, size: int, shown: str) -> tuple[bytes, int]:
    """The JSON and where it ends."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    # A header of 640 bytes begins as a pickle does: only an impossible length tells them apart.
    if shown.endswith(".ckpt") or (length > size - 8 and head.startswith(PICKLES)):
        raise FormatError(f"{shown}: a pickle, which can run code when opened: convert it to .safetensors first")
    if len(head) < 8:
        raise FormatError(f"{shown}: not a safetensors file: {len(head)} bytes long")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"{shown}: not a safetensors file: it begins with a header length of {length} bytes")
    if length > size - 8:
        raise FormatError(f"{shown}: truncated: the header has {length} bytes, the file {size}")
    text = file.read(length)
    if len(text) < length:
        raise FormatError(f"{shown}: truncated while it was being read")
    return text, 8 + length


def _parse(text: bytes) -> dict[str, Any]:
    """JSON, and nothing but JSON: an object whose keys are all different. Raises ValueError."""
    if not text.startswith(b"{"):
        raise ValueError('the header does not begin with "{"')
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique, parse_int=_integer if b"-0" in text else int)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the header is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("the header is nested too deep") from None


def _integer(text: str) -> int:
    """The library takes no -0 for an offset, where Python does."""
    if text == "-0":
        raise ValueError("-0 is no number of bytes")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{short(next(name for name in names if names.count(name) > 1))} stands twice")
    return found


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("__metadata__ must be a table of strings")
    for text in (*value, *value.values()):
        _utf8(text)
    return value


def _tensor(name: str, entry: Any, data_start: int) -> TensorInfo:
    """The entry of a tensor, if it is a right one: a glance tells for most. Raises ValueError."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        plain = type(shape) is list and set(map(type, (start, stop, *shape))) == {int} and min(shape, default=1) > 0
        if (
            plain
            and start >= 0
            and len(entry) == 3
            and name.isascii()
            and DTYPE_BITS[dtype] * prod(shape) == (stop - start) * 8
        ):
            return TensorInfo(dtype, tuple(shape), data_start + start, data_start + stop)
    except (TypeError, ValueError, KeyError):
        pass
    return _judged(name, entry, data_start)


def _judged(name: str, entry: Any, data_start: int) -> TensorInfo:
    _utf8(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{short(name)}: must have dtype, shape and data_offsets, and nothing else")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or not isinstance(shape, list):
        raise ValueError(f"{short(name)}: dtype must be a name, and shape a list")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(o) is not int or o < 0 for o in offsets):
        raise ValueError(f"{short(name)}: data_offsets must be two offsets")
    try:
        expected = byte_size(entry["dtype"], shape)
    except ValueError as error:
        raise ValueError(f"{short(name)}: {error}") from None
    start, stop = offsets
    if stop - start != expected:
        raise ValueError(f"{short(name)}: {entry['dtype']} {short(shape)} has {expected} bytes, not {stop - start}")
    return TensorInfo(entry["dtype"], tuple(shape), data_start + start, data_start + stop)


def _placed(tensors: dict[str, TensorInfo], data_start: int, size: int) -> dict[str, TensorInfo]:
    """The tensors in file order, once it is sure that they fill the file from the header to the end."""
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop, item[0])))
    end = data_start
    for name, info in ordered.items():
        if info.start != end:
            raise ValueError(f"{short(name)}: {'overlaps what is' if info.start < end else 'leaves a gap'} before it")
        end = info.stop
    if end > size:
        raise ValueError(f"truncated: its tensors end at byte {end}, the file at {size}")
    if end < size:
        raise ValueError(f"{size - end} bytes too many after the last tensor")
    return ordered


def _utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no UTF-8 can
        raise ValueError(f"{short(text)} is not Unicode text") from None


def short(value: Any) -> str:
    """What a file says, quoted for a message: one line, printable, not longer than it can be read."""
    try:
        text = ascii(value)
    except RecursionError:
        return "something nested too deep"
    return text if len(text) <= 120 else f"{text[:117]}..."
