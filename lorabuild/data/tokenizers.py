"""Find the vocabulary of a single-file base, which holds none: beside the file, in caches, in programs that have CLIP's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lorabuild.data.vocabulary import CLIP, FILES, PACKED, SIZE, Vocabulary, fault, read_merges, read_vocabulary
from lorabuild.data.vocabulary import is_clip as is_clips
from lorabuild.errors import JobError
from lorabuild.header import read_header

REPOSITORY = "openai/clip-vit-large-patch14"  # on the Hugging Face hub: whose vocabulary it is
FETCH = "lorabuild doctor --fetch-tokenizer"
# Where programs that load single files keep it, seen from a folder around their models.
PROGRAMS = (
    "comfy/sd1_tokenizer",  # ComfyUI
    "backend/huggingface/stabilityai/stable-diffusion-xl-base-1.0/tokenizer",  # Forge
)
AROUND = 5  # folders upwards: ComfyUI/models/checkpoints/sdxl/pony.safetensors
PACKAGES = ("open_clip", "clip")


def beside(file: Path) -> list[Path]:
    """The folders beside a base's file in which its own vocabulary is looked for, in this order."""
    own = file.with_suffix("")
    return [own / "tokenizer", file.parent / "tokenizer", file.parent / "tokenizer_2", file.parent]


def beside_files(file: Path) -> list[Path]:
    """All files that are looked for: one that appears, or goes, may change which vocabulary is the base's."""
    return [folder / name for folder in beside(file) for name in FILES]


def own_folder(file: Path) -> Path | None:
    """The folder beside the file that holds a vocabulary."""
    return next((folder for folder in beside(file) if all((folder / name).is_file() for name in FILES)), None)


def vocabulary_digest(file: Path) -> str:
    """What a key says of the tokenizers of a single file: "clip", or the digest of another vocabulary that lies beside it.

    Whether CLIP's is on this machine is not asked: what is built needs none. Raises JobError for one beside it that is
    not the base's.
    """
    folder = own_folder(file)
    return _read(folder, file).digest if folder else CLIP


def find_vocabulary(file: Path, dirs: Sequence[Path] = ()) -> Path:
    """Where the vocabulary of the base in `file` lies: a folder, or a file of CLIP's merges. See `read_vocabulary`.

    `dirs` are folders of models. Raises JobError where there is none: one line that says what to put where.
    """
    if folder := own_folder(file):
        _read(folder, file)
        return folder
    rows = embedding_rows(file)
    if rows is not None and rows < SIZE:
        raise JobError(
            f"{file}: holds no tokenizer, and its embedding ({rows:,} rows) is not for CLIP's ({SIZE:,} tokens): "
            f"put its own {' and '.join(FILES)} into {beside(file)[0]}/"
        )
    if (found := find_clip([*dirs, *file.parents[:AROUND]])) is None:
        raise JobError(
            f"{file}: a single file holds no tokenizer, and CLIP's was found neither beside it nor in Hugging Face's "
            f"cache: `{FETCH}` fetches it once (0.5 MB); or put {' and '.join(FILES)} of {REPOSITORY} "
            f"into {file.parent / 'tokenizer'}/"
        )
    return found


def find_clip(around: Sequence[Path] = ()) -> Path | None:
    """A file of CLIP's own merges: in folders of models and `around` them, in caches, in installed packages."""
    return next((file for file in clip_places(around) if file.is_file() and holds_clip(file)), None)


def clip_places(around: Sequence[Path] = (), environment: Mapping[str, str] | None = None) -> Iterator[Path]:
    """The files that may hold CLIP's merges, in the order in which they are looked at."""
    environment = os.environ if environment is None else environment
    for folder in around:
        for name in ("tokenizer", "tokenizer_2", "", *PROGRAMS):
            yield folder / name / FILES[1]
    yield kept_clip(environment)
    for snapshot in sorted(_hub(environment).glob("models--*/snapshots/*")):
        for name in ("", "tokenizer", "tokenizer_2"):
            yield snapshot / name / FILES[1]
    for folder in filter(None, sys.path):
        for package in PACKAGES:
            yield Path(folder, package, PACKED)


def holds_clip(file: Path) -> bool:
    """Is it a file of CLIP's own merges?"""
    try:
        return is_clips(read_merges(file))
    except JobError:
        return False


def kept_clip(environment: Mapping[str, str] | None = None) -> Path:
    """Where CLIP's merges are kept that were fetched once, with consent."""
    environment = os.environ if environment is None else environment
    return _cache(environment) / "lorabuild" / "clip" / FILES[1]


def embedding_rows(file: Path) -> int | None:
    """How many tokens the base's text encoders know, by the file's header; None where it has no text encoders."""
    tensors = read_header(file).tensors
    rows = [one.shape[0] for name, one in tensors.items() if name.endswith("token_embedding.weight") and one.shape]
    return min(rows, default=None)


def _read(folder: Path, file: Path) -> Vocabulary:
    vocabulary = read_vocabulary(folder)
    if said := fault(vocabulary, embedding_rows(file)):
        raise JobError(f"{folder}: {said} (looked for beside {file.name})")
    return vocabulary


def _hub(environment: Mapping[str, str]) -> Path:
    """The folder of what was downloaded from the Hugging Face hub, as its library finds it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if set_ := environment.get(name):
            return Path(set_).expanduser()
    home = environment.get("HF_HOME")
    return (Path(home).expanduser() if home else _cache(environment) / "huggingface") / "hub"


def _cache(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
