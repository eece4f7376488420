"""Decode every picture once, several at a time, and remember what was seen of each by its content."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.data.images import NOT_UTF8, opened, pixels_digest, seen
from lorabuild.errors import JobError
from lorabuild.hashing import digest_bytes, read_file
from lorabuild.signature import Signature, racy, signature
from lorabuild.state import State

if TYPE_CHECKING:
    from PIL.Image import Image

LOOKING = 3  # raised by hand when the same file should give other facts
TURN = 2e-4  # seconds
SAMPLES = 24  # a side of a cell of the dHash: recompressed and scaled pictures turn as few bits as with all pixels
MOST_AT_ONCE = 8  # a picture of the largest size allowed takes half a gigabyte

Facts = Mapping[
    str, Any
]  # "digest" of the pixels, "size" [w, h], "dhash", "format", "mode", "frames", "blank", "damage"; or "fault"


@dataclass(frozen=True)
class Fresh:
    """What is to be remembered."""

    digests: dict[Path, tuple[str, Signature]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def look_at(paths: Iterable[Path], state: State, told: Callable[[int], None] = lambda done: None) -> dict[Path, Facts]:
    """The facts of each file; `fault` says why one cannot be used. `told` hears how many are done."""
    wanted = list(dict.fromkeys(paths))
    fresh = Fresh()
    facts: dict[Path, Facts] = {}
    with _quick_turns(), ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_AT_ONCE)) as threads:
        looks = threads.map(lambda path: _look(path, state, fresh), wanted)
        for done, (path, seen) in enumerate(zip(wanted, looks, strict=True), 1):
            facts[path] = seen
            told(done)
    state.remember_all(fresh.digests)
    state.put_all(fresh.facts)
    return facts


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Decoders let go of Python's lock, dozens of times a picture: by default one that wants it back waits up to 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _look(path: Path, state: State, fresh: Fresh) -> Facts:
    try:
        before, data = signature(path), b""
        if (digest := state.known(path, before)) is None:  # read once, to digest and to decode
            data = read_file(path)
            digest = digest_bytes(data)
            if not racy(before) and signature(path) == before:
                fresh.digests[path] = digest, before
        if (known := state.get(_key(digest))) is not None:
            return json.loads(known)
        data = data or path.read_bytes()
    except OSError as error:
        return {"fault": error.strerror or str(error)}
    except UnicodeEncodeError:
        return {"fault": NOT_UTF8}
    facts = facts_of(data)
    fresh.facts[_key(digest_bytes(data))] = json.dumps(facts)
    return facts


def facts_of(data: bytes) -> Facts:
    """What is to be known of a picture, or `fault`: in one line, why it cannot be decoded."""
    try:
        stored = opened(data, "")
        kind = {"format": stored.format, "mode": stored.mode, "frames": getattr(stored, "n_frames", 1)}
        picture = seen(stored)
    except JobError as error:
        return {"fault": str(error).removeprefix(": ")}
    hash = dhash(picture)
    facts = {"digest": pixels_digest(picture), "size": list(picture.size), "dhash": f"{hash:016x}"}
    blank = not hash and all(low == high for low, high in picture.getextrema())
    return {**facts, **kind, "blank": blank, "damage": wrong_checksum(data) if kind["format"] == "PNG" else ""}


def wrong_checksum(png: bytes) -> str:
    """The kind of the first chunk of a PNG whose CRC is not that of its bytes; empty if there is none.

    PNG (ISO/IEC 15948), 5.3: length, kind, data, CRC-32 of kind and data. PIL does not compare that of the pixels.
    """
    at = 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4])
        if zlib.crc32(memoryview(png)[at + 4 : end]) != int.from_bytes(png[end : end + 4]):
            return png[at + 4 : at + 8].decode("ascii", "replace")
        if png[at + 4 : at + 8] == b"IEND":
            break
        at = end + 4
    return ""


def dhash(picture: Image) -> int:
    """64 bits: of a grey 9 x 8 picture, row by row, whether a cell is darker than its right neighbour.

    The difference hash of N. Krawetz ("Kind of Like That", hackerfactor.com, 2013). Scaling and recompression turn few
    of its bits.
    """
    from PIL.Image import Resampling

    columns, rows = 9 * SAMPLES, 8 * SAMPLES
    if picture.width > columns or picture.height > rows:  # a mean of all pixels takes a quarter of the time of decoding
        size = min(picture.width, columns), min(picture.height, rows)
        picture = picture.resize(size, Resampling.NEAREST)
    cells = picture.convert("L").resize((9, 8), Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for left, right in zip(cells[9 * row : 9 * row + 8], cells[9 * row + 1 : 9 * row + 9], strict=True):
            bits = bits << 1 | (left < right)
    return bits


def _key(digest: str) -> str:
    """Another Pillow may read what this one does not."""
    return f"check picture {LOOKING} {_pillow()} {digest}"


@cache
def _pillow() -> str:
    return version("pillow")  # looks through all folders that packages may lie in
