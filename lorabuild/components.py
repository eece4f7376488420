"""Digest a base part by part, by content alone, so that two bases with the same VAE share their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import xxhash

from lorabuild.bases.family import folder_stranger, stranger
from lorabuild.bases.layout import COMPONENTS_FILE as COMPONENTS_FILE
from lorabuild.bases.layout import FOLDERS as FOLDERS
from lorabuild.bases.layout import PREFIXES as PREFIXES
from lorabuild.bases.layout import WEIGHT_FILES as WEIGHT_FILES
from lorabuild.bases.layout import Part, Stored, component_folder, find_part, weight_files
from lorabuild.data.tokenizers import own_folder, vocabulary_digest
from lorabuild.data.vocabulary import FILES as TOKENIZER_FILES
from lorabuild.errors import JobError
from lorabuild.hashing import CHUNK_BYTES, canonical_json
from lorabuild.header import read_header

DIGESTING = 1  # raised by hand when an equal component should have another digest


Told = Callable[[int, int], None]  # bytes read, of so many


def silent(done: int, total: int) -> None:
    """Tells nobody."""


def component_digests(base: Path, names: Iterable[str], told: Told = silent) -> dict[str, str]:
    """Component -> digest, for a diffusers folder or a single file; nothing is read for components that are not named.

    Equal digests are promised within one layout. `told` hears of each component how many of its bytes are read. Raises
    JobError where a component is missing or damaged, or where it is no base of SDXL: before any weight is read.
    """
    wanted = list(names)
    parts = parts_of(base, [name for name in wanted if not _is_tokenizer(name)])
    return {
        name: _digest(base, parts[name].tensors, told) if name in parts else _tokenizer_digest(base, name)
        for name in wanted
    }


def parts_of(base: Path, names: Iterable[str]) -> dict[str, Part]:
    """Where the tensors of these components lie. Raises JobError as `component_digests`; only headers are read."""
    wanted = list(names)
    header = None if base.is_dir() else read_header(base)
    if header and (what := stranger(header.tensors, wanted)):
        raise JobError(f"{base}: {what}")
    if base.is_dir() and (what := folder_stranger(base, wanted)):
        raise JobError(f"{base}: {what}")
    return {name: find_part(base, name, header) for name in wanted}


def component_files(base: Path, name: str) -> list[Path]:
    """The files that the digest of a component is made of: while they stay as they are, so does it. Raises JobError."""
    if not base.is_dir():
        own = own_folder(base) if _is_tokenizer(name) else None
        return [base, *(_tokenizer_files(own) if own else ())]
    if _is_tokenizer(name):
        return _tokenizer_files(base / FOLDERS[name])
    return weight_files(component_folder(base, name))


def pinned_file(base: Path) -> Path:
    """The file whose sha256 a pin is of: the base's one, or that of its U-Net's weights. Raises JobError for shards."""
    if not base.is_dir():
        return base
    files = weight_files(component_folder(base, "unet"))
    if len(files) > 1:
        raise JobError(f"{files[0]}: the U-Net is in {len(files) - 1} files, so that no one digest can be pinned")
    return files[0]


def folder_digests(base: Path) -> dict[str, str]:
    """Component -> digest, for a base in diffusers' layout. Raises JobError where a part is missing or damaged."""
    return component_digests(base, FOLDERS)


def tensors_digest(path: Path, prefix: str = "", told: Told = silent) -> str:
    """xxh3-128 over (name, dtype, shape, bytes) of the tensors whose names begin with `prefix`, in order of the names.

    Names count without the prefix. `position_ids` (0, 1, 2, … in older files, absent in newer) and the second set of
    weights `model_ema.*` are left out. Bytes are read by range, never a whole tensor at once.
    """
    tensors = {
        name.removeprefix(prefix): Stored(path, info)
        for name, info in read_header(path).tensors.items()
        if name.startswith(prefix) and not name.startswith("model_ema.") and not name.endswith("position_ids")
    }
    return _digest(path, tensors, told)


def tokenizer_digest(folder: Path) -> str:
    """xxh3-128 over the bytes of the vocabulary and of the merges, each after its length."""
    state = xxhash.xxh3_128()
    for path in _tokenizer_files(folder):
        data = path.read_bytes()
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def _digest(place: Path, tensors: Mapping[str, Stored], told: Told) -> str:
    state, done = xxhash.xxh3_128(), 0
    total = sum(stored.info.stop - stored.info.start for stored in tensors.values())
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(open(path, "rb", buffering=0))
            for path in {stored.path for stored in tensors.values()}
        }
        for name, (path, info) in sorted(tensors.items()):
            state.update(canonical_json([name, info.dtype, list(info.shape)]))
            file = files[path]
            file.seek(info.start)
            rest = info.stop - info.start
            while rest and (chunk := file.read(min(rest, CHUNK_BYTES))):
                state.update(chunk)
                rest -= len(chunk)
            done += info.stop - info.start
            told(done, total)
            if rest:
                raise JobError(f"{path}: truncated while it was being read")
    return state.hexdigest()


def _tokenizer_digest(base: Path, name: str) -> str:
    return tokenizer_digest(base / FOLDERS[name]) if base.is_dir() else vocabulary_digest(base)


def _is_tokenizer(name: str) -> bool:
    return name.startswith("tokenizer")


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [folder / name for name in TOKENIZER_FILES]
    for path in files:
        if not path.is_file():
            raise JobError(f"{path}: not found; a tokenizer has {' and '.join(TOKENIZER_FILES)}")
    return files
