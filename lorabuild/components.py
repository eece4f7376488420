"""Digest a base part by part, by content alone, so that two bases with the same VAE share their latents."""

from __future__ import annotations

from pathlib import Path

import xxhash

from lorabuild.errors import JobError
from lorabuild.hashing import CHUNK_BYTES, canonical_json
from lorabuild.header import read_header

COMPONENTS_FILE = "components.json"  # the digests of a base that lorabuild made, beside its files

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
TOKENIZER_FILES = ("vocab.json", "merges.txt")


def folder_digests(base: Path) -> dict[str, str]:
    """Component -> digest, for a base in diffusers' layout. Raises JobError where a part is missing or damaged."""
    return {
        component: (tokenizer_digest if component.startswith("tokenizer") else weights_digest)(base / folder)
        for component, folder in FOLDERS.items()
    }


def weights_digest(folder: Path) -> str:
    """The digest of the one weight file in a component's folder; its name and what lies beside it do not count."""
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if len(found) != 1:
        raise JobError(f"{folder}: holds {len(found) or 'none'} of {' and '.join(WEIGHT_FILES)}; one was expected")
    return tensors_digest(found[0])


def tensors_digest(path: Path, prefix: str = "") -> str:
    """xxh3-128 over (name, dtype, shape, bytes) of the tensors whose names begin with `prefix`, in order of the names.

    Names count without the prefix. `position_ids` (0, 1, 2, … in older files, absent in newer) and the second set of
    weights `model_ema.*` are left out. Bytes are read by range, never a whole tensor at once.
    """
    tensors = {
        name.removeprefix(prefix): info
        for name, info in read_header(path).tensors.items()
        if name.startswith(prefix) and not name.startswith("model_ema.") and not name.endswith("position_ids")
    }
    state = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        for name, info in sorted(tensors.items()):
            state.update(canonical_json([name, info.dtype, list(info.shape)]))
            file.seek(info.start)
            rest = info.stop - info.start
            while rest and (chunk := file.read(min(rest, CHUNK_BYTES))):
                state.update(chunk)
                rest -= len(chunk)
            if rest:
                raise JobError(f"{path}: truncated while it was being read")
    return state.hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """xxh3-128 over the bytes of the vocabulary and of the merges, each after its length."""
    state = xxhash.xxh3_128()
    for name in TOKENIZER_FILES:
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            raise JobError(f"{folder / name}: not found; a tokenizer has {' and '.join(TOKENIZER_FILES)}") from None
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()
