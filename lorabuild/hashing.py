"""Digests: xxh3-128 in hex, over bytes, files and plain values; sha256 where the world asks for it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import xxhash

CHUNK_BYTES = 1 << 20  # 1 MiB reads: the fastest size measured


def digest_bytes(data: bytes) -> str:
    """xxh3-128 of `data`, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_file(path: Path) -> str:
    """xxh3-128 of the file's bytes, read in chunks. Raises OSError, also for what is no file: a pipe would be waited for."""
    state = xxhash.xxh3_128()
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def read_file(path: Path) -> bytes:
    """All bytes of a file. Raises OSError as digest_file does."""
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such pipes among its files


def sha256_from(path: Path | str, start: int = 0) -> str:
    """sha256, in hex, of a file's bytes from `start` on. Raises OSError."""
    state, buffer = hashlib.sha256(), bytearray(CHUNK_BYTES)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while count := file.readinto(buffer):
            state.update(memoryview(buffer)[:count])
    return state.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON spelling of a plain value: sorted keys, no spaces, UTF-8. NaN and infinities raise ValueError."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_json(value: Any) -> str:
    """xxh3-128 of the canonical JSON of a plain value."""
    return digest_bytes(canonical_json(value))
