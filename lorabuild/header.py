"""Read a safetensors header without loading tensors, and write canonical files from bytes and ranges of other files.

The format (github.com/huggingface/safetensors, README "Format"): 8 bytes little-endian length of the header, the header
as JSON, then the tensors' bytes, without gaps.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
COPY_BYTES = 1 << 20
BODY_SHA256 = "sha256-of-the-bytes-after-the-header".ljust(64, "-")  # in metadata, until it is known; as long as it is
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


@dataclass(frozen=True)
class FileRange:
    """Bytes `start` to `stop` of another file: copied by the system, never held in memory."""

    path: Path
    start: int
    stop: int


# Bytes; a range of a file; or a function that makes the bytes in their turn, so that one tensor at a time is in memory,
# or as an iterator that gives them piece by piece, so that not even one is.
Data = bytes | bytearray | memoryview | FileRange | Callable[[], Any]
Tensor = tuple[str, str, Sequence[int], Data]  # name, dtype, shape, data


def verbatim(path: Path, tensors: Mapping[str, TensorInfo], prefix: str = "") -> Iterator[Tensor]:
    """Tensors of the file at `path`, to be written as they are, `prefix` before their names."""
    for name, info in tensors.items():
        yield prefix + name, info.dtype, info.shape, FileRange(path, info.start, info.stop)


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


def header_bytes(tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The canonical first part of a file with these tensors (name, dtype, shape), the 8 bytes of length included.

    Tensors in order of their names, compact JSON, no gaps, padded with spaces to a multiple of 8: equal content, equal
    bytes. The tensors' bytes must follow in the same order. Raises ValueError for a name that stands twice.
    """
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: tensor[0]):
        if name in entries or name == "__metadata__":
            raise ValueError(f"tensor name {name!r} cannot be used (again)")
        stop = offset + byte_size(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    return _padded(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())


def spliced(body: BinaryIO, metadata: Mapping[str, str]) -> bytes:
    """The first part of a canonical file with `metadata`, from that of the body `body`, a file that is open at its start.

    The entries of the tensors stay, letter by letter: nothing is parsed. `body` is left where its tensors begin.
    """
    text = body.read(int.from_bytes(body.read(8), "little")).rstrip(b" ")
    said = json.dumps(dict(sorted(metadata.items())), separators=(",", ":"), ensure_ascii=False).encode()
    return _padded(b'{"__metadata__":' + said + (b"," if len(text) > 2 else b"") + text[1:])


def _padded(text: bytes) -> bytes:
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_body(path: Path | str, tensors: Iterable[Tensor]) -> None:
    """Write a canonical file without metadata: name order, whatever the order of `tensors`.

    Ranges of files are copied by the system, neighbours at once: constant memory, and no tensor passes through Python.
    Raises ValueError where data and shape disagree, FormatError if a range reaches beyond its file.
    """
    tensors = list(tensors)
    with _emptied(path) as target:
        _write_all(target, header_bytes([(name, dtype, shape) for name, dtype, shape, _ in tensors]))
        _write_tensors(target, tensors)


def write_file(path: Path | str, tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> None:
    """Write a canonical file with metadata, in which BODY_SHA256 stands for the sha256 of the bytes after the header.

    Raises as `write_body` does. The bytes are digested in a thread of its own while the next ones are made and written.
    """
    tensors = list(tensors)
    header = header_bytes([(name, dtype, shape) for name, dtype, shape, _ in tensors], metadata)
    digest = _Digest(daemon=True)
    digest.start()
    with _emptied(path) as target:
        try:
            _write_all(target, header)
            _write_tensors(target, tensors, digest.add)
        finally:
            sha256 = digest.end()
        target.seek(0)
        _write_all(target, header.replace(BODY_SHA256.encode(), sha256.encode()))


def _emptied(path: Path | str) -> BinaryIO:
    """The file at `path`, empty and open for writing, unbuffered.

    An empty file is not truncated once more: ext4 takes that for an overwrite, and waits for the disk at its closing.
    """
    is_empty = os.path.exists(path) and os.path.getsize(path) == 0
    return open(path, "r+b" if is_empty else "wb", buffering=0)  # the caller closes it


class _Digest(threading.Thread):
    """The sha256 of what is added to it. A few data wait at a time, so that little is in memory."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._state = hashlib.sha256()
        self._queue: queue.Queue[Any] = queue.Queue(4)
        self._error: BaseException | None = None
        self.add = self._queue.put

    def end(self) -> str:
        """All in hex. Raises OSError if a range could not be read."""
        self.add(None)
        self.join()
        if self._error:
            raise self._error
        return self._state.hexdigest()

    def run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                for part in _parts(data) if self._error is None else ():
                    self._state.update(part)
            except BaseException as error:  # told at the end; until then what is added must find its way out
                self._error = error


def _parts(data: Any) -> Iterator[memoryview]:
    if not isinstance(data, FileRange):
        whole = memoryview(data)
        yield whole.cast("B") if whole.nbytes else whole
        return
    buffer, rest = memoryview(bytearray(COPY_BYTES)), data.stop - data.start
    with open(data.path, "rb", buffering=0) as file:
        file.seek(data.start)
        while rest and (count := file.readinto(buffer[: min(rest, COPY_BYTES)])):
            yield buffer[:count]
            rest -= count


def copy_ranges(source: Path | str, ranges: Iterable[tuple[int, int]], target: BinaryIO) -> None:
    """Append the byte ranges (start, stop) of the file `source` to `target`, an unbuffered file open for writing.

    By copy_file_range where the system has it (a file system may then share the blocks), sendfile else, and plain reads
    and writes where neither works. Raises FormatError if `source` ends before a range does.
    """
    with open(source, "rb", buffering=0) as file:
        for start, stop in ranges:
            for copy in (_copy_file_range, _sendfile, _read_and_write):
                start = copy(file.fileno(), start, stop, target)
                if start == stop:
                    break
            else:
                raise FormatError(f"{source}: ends at byte {start}, {stop} were expected")


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


def _write_tensors(
    target: BinaryIO, tensors: Iterable[Tensor], told: Callable[[Any], None] = lambda data: None
) -> None:
    """Append the tensors in name order; neighbours in one file are copied at once. `told` gets what is written."""
    waiting: FileRange | None = None

    def copy() -> None:
        if waiting:
            told(waiting)
            copy_ranges(waiting.path, [(waiting.start, waiting.stop)], target)

    for data in _pieces(tensors):
        if waiting and isinstance(data, FileRange) and (waiting.path, waiting.stop) == (data.path, data.start):
            waiting = FileRange(waiting.path, waiting.start, data.stop)
            continue
        copy()
        waiting = data if isinstance(data, FileRange) else None
        if waiting is None:
            told(data)
            _write_all(target, data)
    copy()


def _pieces(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """The data of the tensors in name order. Raises ValueError where they are not the bytes that a shape has."""
    for name, dtype, shape, data in sorted(tensors, key=lambda tensor: tensor[0]):
        data, found = data() if callable(data) else data, 0
        for piece in data if isinstance(data, Iterator) else (data,):
            found += _length(piece)
            yield piece
        if found != (expected := byte_size(dtype, shape)):
            raise ValueError(f"{name}: {found} bytes given, {dtype} {list(shape)} has {expected}")


def _length(data: Any) -> int:
    return data.stop - data.start if isinstance(data, FileRange) else memoryview(data).nbytes


def _write_all(target: BinaryIO, data: Any) -> None:
    """An unbuffered file takes what it can (on Linux at most 2 GiB) at a time."""
    rest = memoryview(data)
    if rest.nbytes:  # an empty view cannot be cast
        rest = rest.cast("B")
    while rest.nbytes:
        rest = rest[target.write(rest) :]


def _copy_file_range(source: int, start: int, stop: int, target: BinaryIO) -> int:
    """Copy as far as it goes; the offset where it stopped. So do the next two."""
    call = getattr(os, "copy_file_range", None)
    return _advance(lambda at: call(source, target.fileno(), stop - at, at), start, stop) if call else start


def _sendfile(source: int, start: int, stop: int, target: BinaryIO) -> int:
    call = getattr(os, "sendfile", None)
    return _advance(lambda at: call(target.fileno(), source, at, stop - at), start, stop) if call else start


def _advance(call: Callable[[int], int], start: int, stop: int) -> int:
    try:
        while start < stop and (copied := call(start)):
            start += copied
    except OSError:
        pass  # not on this system or between these files; a full disk says so again when it is written to plainly
    return start


def _read_and_write(source: int, start: int, stop: int, target: BinaryIO) -> int:
    os.lseek(source, start, os.SEEK_SET)
    while start < stop and (chunk := os.read(source, min(COPY_BYTES, stop - start))):
        _write_all(target, chunk)
        start += len(chunk)
    return start
