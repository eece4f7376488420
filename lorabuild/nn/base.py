"""Load a base from a diffusers folder, offline and frozen, and keep it warm for the next job of this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorabuild.data.tokenizers import find_vocabulary
from lorabuild.data.vocabulary import read_vocabulary
from lorabuild.errors import JobError
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


def load_unet(folder: Path, dtype: torch.dtype, digest: str | None = None) -> Any:
    """The U-Net of the base in `folder`. With the component's `digest` it is kept warm, and found warm.

    Raises JobError for weights that are not those of the network that config.json describes.
    """
    return kept("unet", digest, dtype, folder / "unet", lambda: _load_unet(folder / "unet", dtype))


def load_text_encoders(
    folder: Path, dtype: torch.dtype, digests: tuple[str | None, str | None] = (None, None)
) -> tuple[Any, Any]:
    """Both CLIP text encoders of the base in `folder`, the second with its projection; kept warm as the U-Net is."""
    first, second = folder / "text_encoder", folder / "text_encoder_2"
    return (
        kept("te1", digests[0], dtype, first, lambda: _load_clip(first, "CLIPTextModel", dtype)),
        kept("te2", digests[1], dtype, second, lambda: _load_clip(second, "CLIPTextModelWithProjection", dtype)),
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


def _load_unet(folder: Path, dtype: torch.dtype) -> Any:
    """Built without weights, then filled: a network of this size takes long to fill with random numbers first."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config)
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.to(dtype, copy=True) for name, tensor in load_file(weights).items()}  # not the mapped file
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # missing, unexpected and misshapen weights, one a line
        raise JobError(f"{weights}: {' '.join(str(error).split())[:300]}") from None
    return single_norms(network)


def _load_clip(folder: Path, architecture: str, dtype: torch.dtype) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    network, info = getattr(transformers, architecture).from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    strange = {key: sorted(map(str, names)) for key, names in info.items() if names and key != "error_msgs"}
    strange = {key: [n for n in names if "position_ids" not in n] for key, names in strange.items()}
    if any(strange.values()):  # transformers would fill a missing weight with random numbers
        raise JobError(f"{folder}: not the weights of a {architecture}: {strange}"[:300])
    return single_norms(network)


def single_norms(network: Any) -> Any:
    """The network with the weights of its norms in float32, whatever the rest is in.

    Norms compute in float32 anyway, a few numbers take no room, and where an adapted layer stands before one, what it is
    given is float32: with weights of another dtype that is an error on a CPU.
    """
    for module in network.modules():
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)) and module.weight.itemsize < 4:
            module.float()
    return network
