"""A base on the device of a job: what a training and its pictures begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorabuild.bases.layout import CLIP_SKIP
from lorabuild.errors import JobError

if TYPE_CHECKING:
    from lorabuild.nn.base import Base
    from lorabuild.workspace import Workspace


def device_of(options: Mapping[str, Any], recipe: Mapping[str, Any], workspace: Workspace) -> str:
    """The device to train on; of several GPUs this process takes its own."""
    import torch

    device = options.get("device", "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        workspace.warn(f"device {device} is not there: the CPU does it")
        device = "cpu"
    if device == "cpu" and recipe["mixed_precision"] == "fp16":
        raise JobError('recipe.mixed_precision: "fp16" needs a GPU; on a CPU use "bf16" or "no"')
    if device != "cpu":  # of several processes each has its own, before it loads the base
        torch.cuda.set_device(options.get("rank", 0))
    return device


def load_base(
    workspace: Workspace, mixed_precision: str, device: str, clip_skip: int = CLIP_SKIP, text: bool = True
) -> Base:
    """The base on its device, found warm if the job before in this process used the same.

    Without `text` the text encoders stay in the host's memory, from where they come when they are asked. What else is
    kept warm, the VAE say, leaves the device.
    """
    import torch

    from lorabuild.nn.base import DTYPES, Base, load_text_encoders, load_tokenizers, load_unet
    from lorabuild.nn.present import HOST
    from lorabuild.nn.warm import aside

    dtype, digests = DTYPES[mixed_precision], workspace.digests
    place = device if text else HOST
    aside(("unet", "te1", "te2") if text else ("unet",))
    unet = load_unet(workspace.path("unet"), dtype, digests["unet"], device)
    te1, te2 = load_text_encoders(workspace.path("te1"), dtype, (digests["te1"], digests["te2"]), place)
    tokenizer1, tokenizer2 = load_tokenizers(workspace.path("tokenizer1"))
    if device != "cpu":
        unet.to(device, memory_format=torch.channels_last)  # as tensor cores take a convolution's inputs
    return Base(unet.to(device), te1.to(place), te2.to(place), tokenizer1, tokenizer2, clip_skip)
