"""Compile the transformer blocks of a U-Net, which are alike: once for all of them, and for all sizes of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VERSIONS = 64  # of the block's code: widths, batches of one, ranks by block; what is beyond runs uncompiled


@contextmanager
def compiled(
    unet: nn.Module, warn: Callable[[str], None], cache: Path | None = None, backend: Any = "inductor"
) -> Iterator[None]:
    """`unet`, with whatever adapter is on it, with compiled transformer blocks within a with block.

    What was compiled is kept in the folder `cache`. On a machine that cannot compile it is one warning, and all runs as
    it would have; so does what has no gradients: a measurement, or a picture on the way.
    """
    from diffusers.models.attention import BasicTransformerBlock

    if cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)  # Triton's is in it, too
    device = next(unet.parameters()).device
    if problem := _problem(device, backend):
        warn(f"torch_compile: this machine cannot compile ({problem}): training goes on without")
        yield
        return
    run = torch.compile(BasicTransformerBlock.forward, backend=backend, dynamic=False)
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    try:
        with torch._dynamo.config.patch(recompile_limit=VERSIONS, suppress_errors=True):
            for block in blocks:
                block.forward = _Block(block, run).forward
            yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
        torch._dynamo.reset()  # it would hold the adapter's tensors


@dataclass(eq=False)
class _Block:
    block: Any
    run: Callable[..., Tensor]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return type(self.block).forward(self.block, *args, **kwargs)
        args = tuple(map(_of_any_size, args))
        return self.run(self.block, *args, **{name: _of_any_size(value) for name, value in kwargs.items()})


def _of_any_size(value: Any) -> Any:
    """A block's input [B, T, C] marked as such, so that no other bucket is another version.

    Not as a view: the shape of what it is a view of would make versions, too.
    """
    if not isinstance(value, Tensor) or value.dim() != 3:
        return value
    if value._is_view():
        value = torch.ops.aten._unsafe_view(value, value.shape)
    for side in (0, 1):
        if value.shape[side] > 1:
            torch._dynamo.maybe_mark_dynamic(value, side)
    return value


def _problem(device: torch.device, backend: Any) -> str:
    """Why nothing can be compiled here; "" if it can."""

    def small(x: Tensor) -> Tensor:
        return x.sin() + 1

    try:
        x = torch.ones(8, device=device, requires_grad=True)
        torch.compile(small, backend=backend)(x).sum().backward()
    except Exception as error:  # a compiler, its headers, Triton: it fails in as many ways as there are machines
        error = getattr(error, "inner_exception", error)  # torch's own around it says which backend, not why
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
    return ""
