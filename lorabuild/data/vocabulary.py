"""Read the vocabulary of a CLIP tokenizer, whatever file holds it, and tell whether it is CLIP's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorabuild.errors import JobError
from lorabuild.hashing import digest_json

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
FILES = ("vocab.json", "merges.txt")
PACKED = "bpe_simple_vocab_16e6.txt.gz"  # as OpenAI published it: longer than CLIP's, which is its beginning
FIRST_LINE = "#version: 0.2"

SIZE = 49_408  # tokens of CLIP's vocabulary: 2 x 256 bytes, what 48,894 merges make, start and end
# sha256 of merges.txt (524,619 bytes) as openai/clip-vit-large-patch14, stable-diffusion-xl-base-1.0 and many others have
# it. PACKED (sha256 924691ac…) leads to the same bytes. The tokens follow from the merges.
CLIP_SHA256 = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
CLIP = "clip"  # the digest of CLIP's own vocabulary, wherever it was found

Merge = tuple[str, str]


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` by their ids, and the pairs that are merged, in order of rank."""

    tokens: Sequence[str]
    merges: Sequence[Merge]

    @property
    def ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def digest(self) -> str:
        """The word "clip" for CLIP's own; of another, xxh3-128 of tokens and merges, however they are spelled in files."""
        if is_clip(self.merges) and list(self.tokens) == laid_out(self.merges):
            return CLIP
        return digest_json([list(self.tokens), [list(pair) for pair in self.merges]])


def laid_out(merges: Sequence[Merge]) -> list[str]:
    """The tokens of a vocabulary as CLIP orders them: bytes, bytes at a word's end, what the merges make, start, end."""
    letters = list(byte_letters().values())
    return [*letters, *(letter + WORD_END for letter in letters), *map("".join, merges), START, END]


def byte_letters() -> dict[int, str]:
    """A printable letter for each byte: its own where it has one, else one from 256 on (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def read_vocabulary(place: Path) -> Vocabulary:
    """The vocabulary in a folder (vocab.json and merges.txt), or CLIP's own by a file of its merges alone.

    Raises JobError for what is none.
    """
    if place.is_dir():
        return _of_folder(place)
    merges = read_merges(place)
    if not is_clip(merges):
        raise JobError(f"{place}: not CLIP's merges")
    return Vocabulary(laid_out(merges), merges)


def read_merges(file: Path) -> list[Merge]:
    """The merges in a merges.txt, or in PACKED as many of them as CLIP has. Raises JobError."""
    import gzip

    try:
        packed = file.suffix == ".gz"
        data = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
        merges = parse_merges(data)
    except (OSError, EOFError, ValueError) as error:
        raise JobError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    return merges[: SIZE - len(laid_out(()))] if packed else merges


def parse_merges(data: bytes) -> list[Merge]:
    """The pairs, a line each, below a first line that names the format. Raises ValueError."""
    first, *lines = data.decode().replace("\r\n", "\n").rstrip("\n").split("\n")
    if "#version" not in first:
        raise ValueError(f'no merges: the first line of such a file is "{FIRST_LINE}"')
    pairs = [tuple(line.split(" ")) for line in lines]
    for number, pair in enumerate(pairs, 2):
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"line {number}: not a pair of tokens")
    return pairs


def spelled(merges: Sequence[Merge]) -> bytes:
    """merges.txt."""
    return "".join(f"{line}\n" for line in (FIRST_LINE, *map(" ".join, merges))).encode()


def is_clip(merges: Sequence[Merge]) -> bool:
    return hashlib.sha256(spelled(merges)).hexdigest() == CLIP_SHA256


def fault(vocabulary: Vocabulary, rows: int | None) -> str | None:
    """What keeps a base from using the vocabulary, whose embedding has so many `rows`; None if nothing does."""
    tokens, known = vocabulary.tokens, set(vocabulary.tokens)
    if missing := [token for token in (START, END) if token not in known]:
        return f"not CLIP's kind of vocabulary: it has no {missing[0]}"
    if strange := next((pair for pair in vocabulary.merges if "".join(pair) not in known), None):
        return f'merges.txt makes "{"".join(strange)}", which vocab.json does not have: they are not of one vocabulary'
    if rows is not None and (len(tokens) > rows or len(tokens) < SIZE <= rows):
        return f"its vocabulary has {len(tokens):,} tokens, and the base's embedding {rows:,} rows: another base's"
    return None


def _of_folder(folder: Path) -> Vocabulary:
    path = folder / FILES[0]
    merges = read_merges(folder / FILES[1])
    try:
        ids = json.loads(path.read_bytes())
        tokens = [token for token, _ in sorted(ids.items(), key=lambda item: item[1])]
        dense = [ids[token] for token in tokens] == list(range(len(tokens)))
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise JobError(f"{path}: not a vocabulary (token -> id as JSON): {error}") from None
    if not dense:
        raise JobError(f"{path}: not a vocabulary: ids are not 0, 1, 2, …")
    return Vocabulary(tokens, merges)
