"""Digest a base part by part, by content alone, so that two bases with the same VAE share their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import xxhash

from lorabuild.data.tokenizers import own_folder, vocabulary_digest
from lorabuild.data.vocabulary import FILES as TOKENIZER_FILES
from lorabuild.errors import JobError
from lorabuild.hashing import CHUNK_BYTES, canonical_json
from lorabuild.header import TensorInfo, read_header

COMPONENTS_FILE = "components.json"  # the digests of a base that lorabuild made, beside its files
DIGESTING = 1  # raised by hand when an equal component should have another digest

# Component -> its folder in a base of diffusers' layout.
FOLDERS = {
    "vae": "vae",
    "unet": "unet",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "tokenizer1": "tokenizer",
    "tokenizer2": "tokenizer_2",
}
WEIGHT_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")

# Component -> what its tensors' names begin with in a single file of SGM's layout (Stability AI's generative-models).
PREFIXES = {
    "vae": "first_stage_model.",
    "unet": "model.diffusion_model.",
    "te1": "conditioner.embedders.0.transformer.",
    "te2": "conditioner.embedders.1.model.",
}

Told = Callable[[int, int], None]  # bytes read, of so many


def silent(done: int, total: int) -> None:
    """Tells nobody."""


def component_digests(base: Path, names: Iterable[str], told: Told = silent) -> dict[str, str]:
    """Component -> digest, for a diffusers folder or a single file; nothing is read for components that are not named.

    Equal digests are promised within one layout. `told` hears of each component how many of its bytes are read. Raises
    JobError where a component is missing or damaged.
    """
    return _in_folder(base, names, told) if base.is_dir() else _in_file(base, names, told)


def component_files(base: Path, name: str) -> list[Path]:
    """The files that the digest of a component is made of: while they stay as they are, so does it. Raises JobError."""
    if not base.is_dir():
        own = own_folder(base) if _is_tokenizer(name) else None
        return [base, *(_tokenizer_files(own) if own else ())]
    folder = base / FOLDERS[name]
    return _tokenizer_files(folder) if _is_tokenizer(name) else [_weight_file(folder)]


def folder_digests(base: Path) -> dict[str, str]:
    """Component -> digest, for a base in diffusers' layout. Raises JobError where a part is missing or damaged."""
    return _in_folder(base, FOLDERS)


def weights_digest(folder: Path, told: Told = silent) -> str:
    """The digest of the one weight file in a component's folder; its name and what lies beside it do not count."""
    return tensors_digest(_weight_file(folder), told=told)


def tensors_digest(path: Path, prefix: str = "", told: Told = silent) -> str:
    """xxh3-128 over (name, dtype, shape, bytes) of the tensors whose names begin with `prefix`, in order of the names.

    Names count without the prefix. `position_ids` (0, 1, 2, … in older files, absent in newer) and the second set of
    weights `model_ema.*` are left out. Bytes are read by range, never a whole tensor at once.
    """
    return _digest(path, _counted(read_header(path).tensors, prefix), told)


def tokenizer_digest(folder: Path) -> str:
    """xxh3-128 over the bytes of the vocabulary and of the merges, each after its length."""
    state = xxhash.xxh3_128()
    for path in _tokenizer_files(folder):
        data = path.read_bytes()
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def _in_folder(base: Path, names: Iterable[str], told: Told = silent) -> dict[str, str]:
    folders = {name: base / FOLDERS[name] for name in names}
    return {
        name: tokenizer_digest(folder) if _is_tokenizer(name) else weights_digest(folder, told)
        for name, folder in folders.items()
    }


def _in_file(path: Path, names: Iterable[str], told: Told) -> dict[str, str]:
    """The header is read once, and what is missing is told before any weight is read."""
    tensors, wanted = read_header(path).tensors, list(names)
    parts = {name: _counted(tensors, PREFIXES[name]) for name in wanted if not _is_tokenizer(name)}
    for name, part in parts.items():
        if not part:
            raise JobError(f"{path}: not an SDXL checkpoint: no tensors {PREFIXES[name]}*")
    # A single file holds no tokenizer. Both are CLIP's, the same for every SDXL, unless another lies beside the file.
    return {name: _digest(path, parts[name], told) if name in parts else vocabulary_digest(path) for name in wanted}


def _counted(tensors: Mapping[str, TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    """The tensors that count, by their names without the prefix."""
    return {
        name.removeprefix(prefix): info
        for name, info in tensors.items()
        if name.startswith(prefix) and not name.startswith("model_ema.") and not name.endswith("position_ids")
    }


def _digest(path: Path, tensors: Mapping[str, TensorInfo], told: Told) -> str:
    state, done, total = xxhash.xxh3_128(), 0, sum(info.stop - info.start for info in tensors.values())
    with open(path, "rb", buffering=0) as file:
        for name, info in sorted(tensors.items()):
            state.update(canonical_json([name, info.dtype, list(info.shape)]))
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


def _is_tokenizer(name: str) -> bool:
    return name.startswith("tokenizer")


def _weight_file(folder: Path) -> Path:
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if len(found) != 1:
        raise JobError(f"{folder}: holds {len(found) or 'none'} of {' and '.join(WEIGHT_FILES)}; one was expected")
    return found[0]


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [folder / name for name in TOKENIZER_FILES]
    for path in files:
        if not path.is_file():
            raise JobError(f"{path}: not found; a tokenizer has {' and '.join(TOKENIZER_FILES)}")
    return files
