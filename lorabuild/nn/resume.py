"""Keep a training's state on disk, so that a killed run goes on where it was: one file, whole or not there at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lorabuild.errors import naming
from lorabuild.files import sync_folder
from lorabuild.hashing import digest_bytes

REST = 20  # the time between two saves is at least this many times what a save takes: at most 5 % of a training
_DIGEST_BYTES = 32
_FORMAT = "2"  # 1 knew AdamW's state only


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
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}, facts)
        part = self.path.with_name(self.path.name + ".part")
        try:
            with naming(self.path), open(part, "wb") as file:
                file.write(digest_bytes(data).encode())
                file.write(data)
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
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        digest, data = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if digest_bytes(data).encode() != digest:
            raise Unusable("the saved state is damaged")
        try:
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length])["__metadata__"]
            if metadata["format"] != _FORMAT:
                raise Unusable("the saved state is of another version")
            if metadata["identity"] != self.identity:
                raise Unusable("the saved state is of another training")
            return State(load(data), json.loads(metadata["facts"]))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise Unusable("the saved state is of another version") from error
