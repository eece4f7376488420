"""A U-Net's transformers by level, how to leave some out for a while, and how they start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Level -> the places of its transformers. Level 0 has none; level 2 has 60 of 70 blocks, as SDXL's.
PLACES = {
    "down1": "down_blocks.1.attentions.", "up1": "up_blocks.1.attentions.",
    "down2": "down_blocks.2.attentions.", "mid": "mid_block.attentions.", "up0": "up_blocks.0.attentions.",
}  # fmt: skip
LEVEL1, LEVEL2 = ("down1", "up1"), ("down2", "mid", "up0")
BLOCKS = {"down2": ("INP07", "INP08"), "mid": ("MID",), "up0": ("OUT00", "OUT01", "OUT02")}  # as users call them


def transformers(unet: Any, *places: str) -> list[Any]:
    """The Transformer2DModels at these places."""
    prefixes = tuple(PLACES[place] for place in places)
    return [
        m for name, m in unet.named_modules() if name.startswith(prefixes) and type(m).__name__ == "Transformer2DModel"
    ]


@contextmanager
def bypassed(unet: Any, *places: str) -> Iterator[None]:
    """`unet` without what the transformers at `places` add; they are not computed either."""
    taken = transformers(unet, *places)
    for one in taken:
        one.forward = _nothing_added
    try:
        yield
    finally:
        for one in taken:
            del one.forward


def _nothing_added(hidden_states: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
    return (hidden_states,) if not return_dict else _Sample(hidden_states)


class _Sample:
    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


def start(unet: Any, gains: Mapping[str, float]) -> None:
    """Scale the libraries' random weights of what ends a residual branch, in place.

    Everything starts as nothing (0), but for level 2's `branch` (ends of attention and feed-forward) and `exit` (what a
    whole transformer adds): a stack of ten blocks that starts at zero is overtaken by the one or two of level 1.
    """
    deep = tuple(PLACES[place] for place in LEVEL2)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            is_branch = "to_out.0." in name or "ff.net.2." in name
            if is_branch or "proj_out." in name:
                parameter *= gains["branch" if is_branch else "exit"] if name.startswith(deep) else 0.0
            elif "conv2." in name or name.startswith("conv_out."):
                parameter.zero_()
