"""Load a base from a single file or a diffusers folder, frozen, and keep it warm for the next job of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorabuild.bases.layout import CLIP_SKIP
from lorabuild.data.tokenizers import find_vocabulary
from lorabuild.data.vocabulary import read_vocabulary
from lorabuild.nn.networks import load_network
from lorabuild.nn.warm import kept

# recipe.mixed_precision -> dtype of the base's weights. The adapter's own weights are float32 with each of them.
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Base:
    """What an SDXL predicts with. The networks are frozen and in evaluation mode."""

    unet: Any  # diffusers.UNet2DConditionModel
    te1: Any  # transformers.CLIPTextModel
    te2: Any  # transformers.CLIPTextModelWithProjection
    tokenizer1: Any  # transformers.CLIPTokenizer
    tokenizer2: Any
    clip_skip: int = CLIP_SKIP  # which hidden states of both text encoders count, from the last


def load_unet(base: Path, dtype: torch.dtype, digest: str | None = None, device: str = "cpu") -> Any:
    """The U-Net of the file or folder `base`, on `device`. With its `digest` it is kept warm, and found warm.

    Raises JobError for weights that are not those of SDXL's U-Net, or of the network that config.json describes.
    """
    return kept("unet", digest, dtype, base, lambda: load_network(base, "unet", dtype, device))


def load_text_encoders(
    base: Path, dtype: torch.dtype, digests: tuple[str | None, str | None] = (None, None), device: str = "cpu"
) -> tuple[Any, Any]:
    """Both CLIP text encoders of `base`, the second with its projection; kept warm as the U-Net is."""
    return (
        kept("te1", digests[0], dtype, base, lambda: load_network(base, "te1", dtype, device)),
        kept("te2", digests[1], dtype, base, lambda: load_network(base, "te2", dtype, device)),
    )


def load_tokenizers(base: Path) -> tuple[Any, Any]:
    """Both CLIP tokenizers of a base: of its folder, of its single file, or by the place of a single file's vocabulary.

    Those of a single file are one: SDXL's second pads otherwise, which is done where captions are tokenised. Raises
    JobError where a single file's vocabulary is not found.
    """
    from transformers import CLIPTokenizer

    folder = base
    if not (folder / "tokenizer").is_dir():
        vocabulary = read_vocabulary(find_vocabulary(base) if base.suffix.casefold() == ".safetensors" else base)
        one = CLIPTokenizer(vocab=vocabulary.ids, merges=list(vocabulary.merges))
        return one, one
    first, second = (
        CLIPTokenizer.from_pretrained(folder / name, local_files_only=True) for name in ("tokenizer", "tokenizer_2")
    )
    return first, second


@contextmanager
def checkpointing(base: Base, wanted: bool) -> Iterator[None]:
    """With `wanted`, the U-Net's activations are computed again in the backward pass: less memory, the same numbers."""
    if wanted:
        base.unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        base.unet.disable_gradient_checkpointing()
