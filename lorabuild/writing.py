"""Write canonical safetensors files from bytes and from ranges of other files: names sorted, compact JSON, no gaps."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lorabuild.header import FormatError, TensorInfo, byte_size

COPY_BYTES = 1 << 20
BODY_SHA256 = "sha256-of-the-bytes-after-the-header".ljust(64, "-")  # in metadata, until it is known; as long as it is


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
