"""Count the floating-point operations of a training step, and measure how many a second the device can do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lorabuild.lora.adapter_shape import Shape
from lorabuild.nn.adapter import Adapter, adapted
from lorabuild.nn.base import Base
from lorabuild.nn.text import TOKENS, encode
from sdxl.models import Widths, random_base

ROUNDS, PRODUCTS = 5, 20


def step_flops(
    widths: Widths, recipe: Mapping[str, Any], parts: tuple[str, ...], batch: int, side: int, device: str = "meta"
) -> tuple[int, int]:
    """(base's, adapter's) operations of the forward and backward passes of one micro-batch of squares of `side` pixels.

    The base's are what frozen weights need when gradients reach the adapters' places: forward, and the gradients of
    activations. Each product counts once, whatever is computed again in the backward pass to save memory; what is no
    product (norms, activations, sums) does not count, as is usual. On the meta device nothing is computed at all; where
    widths are tiny, computing is the faster way.
    """
    base = random_base(widths, torch.float32, device)
    with adapted(base, Shape.of(recipe), recipe["seed"], parts, device) as adapter:
        whole = _counted(base, batch, side, device)
        with _markers(adapter, device):
            alone = _counted(base, batch, side, device)
    return alone, whole - alone


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large product of square matrices of random numbers: the best of a few rounds."""
    size, clock = (8192, time.perf_counter) if device == "cuda" else (512, time.process_time)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(ROUNDS):
        synchronise(device)
        start = clock()
        for _ in range(PRODUCTS):
            a @ b
        synchronise(device)
        best = max(best, 2 * size**3 * PRODUCTS / (clock() - start))
    return best


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _counted(base: Base, batch: int, side: int, device: str) -> int:
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm})
    # Attention as plain products: the kernels for a CPU are unknown to the counter, those for a GPU compute one again.
    with torch.device(device), _without_autocast(), sdpa_kernel(SDPBackend.MATH), counter:
        ids = torch.zeros(batch, TOKENS, dtype=torch.long)
        noisy = torch.randn(batch, base.unet.config.in_channels, side // 8, side // 8)
        hidden, pooled = encode(base.te1, base.te2, ids, ids, 0)
        conditions = {"text_embeds": pooled, "time_ids": torch.zeros(batch, 6)}
        base.unet(noisy, torch.zeros(batch), hidden, added_cond_kwargs=conditions).sample.sum().backward()
    return counter.get_total_flops()


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Autocast does not know the meta device, and nothing here hangs on it. A weight that is made again is made once."""
    with (
        patch.object(torch, "is_autocast_enabled", lambda *_: False),
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
        patch("lorabuild.nn.adapters.module.rebuilt", lambda make, tensors: make(*tensors)),
    ):
        yield


def _addmm(_: Any, a: Sequence[int], b: Sequence[int], *__: Any, **___: Any) -> int:
    """Of the form in place: torch counts the other alone."""
    return 2 * a[0] * a[1] * b[1]


@contextmanager
def _markers(adapter: Adapter, device: str) -> Iterator[None]:
    """In each adapter's place something that learns and costs no product: gradients flow where they flew before."""
    hooks = []
    for module in adapter.modules.values():
        module.detach()
        marker = torch.zeros((), device=device, requires_grad=True)
        hooks.append(module.layer.register_forward_hook(lambda _, __, out, marker=marker: out + marker))
    try:
        yield
    finally:
        for hook, module in zip(hooks, adapter.modules.values(), strict=True):
            hook.remove()
            module.attach()
