"""Random streams: every random number of a build is a function of the seed and of what it is for.

No stream runs on from one use to the next, so a resumed training draws what an uninterrupted one does, and a new use
disturbs no other.
"""

from __future__ import annotations

from random import Random

import xxhash

from lorabuild.hashing import canonical_json


def stream_seed(seed: int, *purpose: str | int) -> int:
    """The seed, of 63 bits, of the stream for `purpose`: `stream_seed(42, "noise", epoch, digest, repeat)`."""
    return xxhash.xxh3_64_intdigest(canonical_json([seed, *purpose])) >> 1


def python_random(seed: int, *purpose: str | int) -> Random:
    """A `random.Random` at the start of the stream for `purpose`."""
    return Random(stream_seed(seed, *purpose))
