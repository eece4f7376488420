"""Keep a training's state on disk, so that a killed run goes on where it was: one file, whole or not there at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from lorabuild.errors import naming
from lorabuild.files import sync_folder
from lorabuild.hashing import CHUNK_BYTES

REST = 20  # the time between two saves is at least this many times what a save takes: at most 5 % of a training
_DIGEST_BYTES = 32
_FORMAT = "2"  # 1 knew AdamW's state only
# The format's names of dtypes: of parameters, moments in 8 bits, counters, flags.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LABELS = {dtype: label for label, dtype in DTYPES.items()}


@dataclass(frozen=True)
class State:
    """All that a training is made of after an update: tensors by name, and plain facts (step, log, …)."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Unusable(Exception):
    """A state file is damaged, or of another training: one line that says which."""


@dataclass
class StateFile:
    """The state file of one training. `identity` says all that shapes the training: only its own state is taken up."""

    path: Path
    identity: str
    clock: Callable[[], float] = time.monotonic
    _saved_at: float = field(default=float("-inf"), init=False)
    _took: float = field(default=0.0, init=False)

    def due(self) -> bool:
        """Whether a save now keeps saving cheap. The first one always is."""
        return self.clock() - self._saved_at >= REST * self._took

    def save(self, state: State) -> None:
        """Write the state: its digest, then safetensors with the facts in the metadata; replaced in one step."""
        start = self.clock()
        facts = {"format": _FORMAT, "identity": self.identity, "facts": json.dumps(state.facts)}
        part = self.path.with_name(self.path.name + ".part")
        try:
            with naming(self.path), open(part, "wb") as file:
                _write(file, state.tensors, facts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except OSError:  # where the disk is full, others need the room
            part.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)
        self._saved_at = self.clock()
        self._took = self._saved_at - start

    def load(self) -> State | None:
        """The state that was saved last, None if there is none. Raises Unusable for a damaged or a foreign one."""
        if not self.path.exists():
            return None
        with open(self.path, "rb") as file:
            if file.read(_DIGEST_BYTES).decode(errors="replace") != _digest_of_rest(file):
                raise Unusable("the saved state is damaged")
            file.seek(_DIGEST_BYTES)
            try:
                entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
                metadata = entries.pop("__metadata__")
                if metadata["format"] != _FORMAT:
                    raise Unusable("the saved state is of another version")
                if metadata["identity"] != self.identity:
                    raise Unusable("the saved state is of another training")
                return State(dict(_read(file, entries)), json.loads(metadata["facts"]))
            except (ValueError, KeyError, TypeError) as error:
                raise Unusable("the saved state is of another version") from error


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The digest of the rest, then safetensors. No more than one tensor is in memory beside the training's own."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": LABELS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    state = xxhash.xxh3_128()
    file.write(bytes(_DIGEST_BYTES))
    for data in chain([len(header).to_bytes(8, "little") + header], map(_bytes, tensors.values())):
        state.update(data)
        file.write(data)
    file.seek(0)
    file.write(state.hexdigest().encode())


def _read(file: BinaryIO, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors from where the file stands on, in its order, which is that of the entries."""
    for name, entry in entries.items():
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        file.readinto(_bytes(tensor))  # type: ignore[attr-defined]
        yield name, tensor


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; its own memory, if that is whole and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _digest_of_rest(file: BinaryIO) -> str:
    state = xxhash.xxh3_128()
    while chunk := file.read(CHUNK_BYTES):
        state.update(chunk)
    return state.hexdigest()
