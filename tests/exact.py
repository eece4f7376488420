"""One training update in float64, which is the measure of the same update in float32, bf16 and fp16."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.embeddings import Timesteps
from tiny_base import RECIPE, dataset, latents, tiny_base, tiny_folder
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorabuild.nn import feed
from lorabuild.nn.adapter import Adapter, Shape, adapted
from lorabuild.nn.adapters.chance import Chance
from lorabuild.nn.adapters.module import Module
from lorabuild.nn.adapters.weights import low_rank
from lorabuild.nn.base import DTYPES, Base, load_text_encoders, load_tokenizers, load_unet
from lorabuild.nn.batches import Data, MicroBatch, micro_batch
from lorabuild.nn.noise import generator
from lorabuild.nn.trainer import Training, _Loop, trained_parts

EXACT = "fp64"  # a mixed_precision that no manifest may have
SAMPLES = [(0, 0), (1, 0), (2, 0)]
YOUNG = 1e-3  # |dW| of a layer is about this part of |W|: after some updates


@dataclass(frozen=True)
class Update:
    """What one update came to, all float64, by the names of the parameters."""

    prediction: Tensor  # [B, 4, h, w]
    loss: float
    norm: float
    gradients: dict[str, Tensor]
    changes: dict[str, Tensor]  # of the weights


@cache
def exact_base() -> Base:
    """`tiny` in float64, its sinusoids included, from the float32 weights that all others are rounded from."""
    folder = tiny_folder()
    networks = load_unet(folder, torch.float64), *load_text_encoders(folder, torch.float64)
    for network in networks:
        network.double().requires_grad_(False).eval()
    for module in networks[0].modules():
        if isinstance(module, Timesteps):
            module.forward = lambda steps, width=module.num_channels: sinusoids(steps, width)
    return Base(*networks, *load_tokenizers(folder))


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """[n] -> [n, width]: cosines, then sines, of falling frequency (Ho et al. 2020, as SDXL has them)."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = steps.double()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def base_in(mode: str) -> Base:
    return exact_base() if mode == EXACT else tiny_base(DTYPES[mode])


@contextmanager
def prepared(mode: str, **recipe: Any) -> Iterator[_Loop]:
    """A training in this precision whose adapter is young, so that every tensor has a gradient; equal for all modes."""
    settings, base = {**RECIPE, **recipe, "mixed_precision": mode}, base_in(mode)
    with ExitStack() as stack:
        stack.enter_context(patch.dict(DTYPES, {EXACT: torch.float64}))
        if mode == EXACT:
            stack.enter_context(patch.object(feed, "micro_batch", _exact_batch))
        adapter = stack.enter_context(adapted(base, Shape.of(settings), settings["seed"], trained_parts(settings)))
        grow(adapter)
        if mode == EXACT:
            for parameter in adapter.parameters().values():
                parameter.data = parameter.data.double()
        loop = _Loop(Training(base, adapter, Data(dataset(), latents().__getitem__), settings))
        if mode == EXACT:
            loop.objective = replace(
                loop.objective,
                **{name: None if table is None else table.double() for name, table in _tables(loop.objective)},
            )
        yield loop


def update(mode: str, **recipe: Any) -> Update:
    """One update of the training of `recipe`, in this precision."""
    seen: dict[str, Any] = {}
    with prepared(mode, **recipe) as loop:
        step, parameters = loop.optimizer.step, loop.parameters
        before = {name: parameter.detach().double().clone() for name, parameter in parameters.items()}

        def stepped(*args: Any, **kwargs: Any) -> Any:
            seen["gradients"] = {n: p.grad.double().clone() for n, p in parameters.items() if p.grad is not None}
            return step(*args, **kwargs)

        loop.optimizer.step = stepped
        hook = loop.training.base.unet.register_forward_hook(
            lambda module, given, out: seen.update(prediction=out.sample.detach().double())
        )
        try:
            loss = loop.update([(0, SAMPLES)])
        finally:
            hook.remove()
        changes = {name: parameter.detach().double() - before[name] for name, parameter in parameters.items()}
    return Update(seen["prediction"], loss, loop.log[-1]["grad_norm"], seen["gradients"], changes)


@torch.no_grad()
def grow(adapter: Adapter) -> None:
    """Give what starts at zero small numbers, each from a stream of its own."""
    for name, parameter in adapter.parameters().items():
        if not parameter.any():
            parameter.normal_(std=YOUNG, generator=generator(1, name))


def _exact_batch(*args: Any) -> MicroBatch:
    batch = micro_batch(*args)
    return replace(batch, latents=batch.latents.double(), noise=batch.noise.double())


def _tables(objective: Any) -> list[tuple[str, Tensor | None]]:
    return [(name, getattr(objective, name)) for name in ("kept", "thresholds", "weights")]


def error(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|."""
    return ((found - exact).norm() / exact.norm()).item()


def joined(tensors: dict[str, Tensor], part: str = "") -> Tensor:
    """All numbers of the tensors whose names begin so, in name order."""
    return torch.cat(
        [torch.empty(0), *(one.flatten() for name, one in sorted(tensors.items()) if name.startswith(part))]
    )


def exact_change() -> tuple[Tensor, dict[str, Tensor]]:
    """(prediction, gradients) of that update of a LoCon, with W + dW in place of each weight W, all in float64."""
    with prepared(EXACT) as loop, ExitStack() as stack:
        modules = loop.training.adapter.modules
        for module in modules.values():
            module.detach()
            changed = _WithChange(module)
            parametrize.register_parametrization(module.layer, "weight", changed, unsafe=True)
            stack.callback(parametrize.remove_parametrizations, module.layer, "weight", leave_parametrized=False)
        batch = _exact_batch(loop.training.data, loop.training.recipe, loop.training.recipe["seed"], 0, SAMPLES, 0, 0)
        seen: dict[str, Tensor] = {}
        hook = loop.training.base.unet.register_forward_hook(lambda m, given, out: seen.update(prediction=out.sample))
        stack.callback(hook.remove)
        loop._losses(batch, loop.objective).mean().backward()
        loop.flat.settle()
        gradients = {name: one.grad.clone() for name, one in loop.parameters.items() if one.grad is not None}
    norm = joined(gradients).norm()
    clipped = min(1.0, RECIPE["max_grad_norm"] / norm.item())
    return seen["prediction"].detach(), {name: one * clipped for name, one in gradients.items()}


class _WithChange(nn.Module):
    def __init__(self, module: Any):
        super().__init__()
        self.tensors, self.factor = module.tensors, module.factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight + low_rank(self.tensors, weight) * self.factor


def arrives(layer: nn.Module, mode: str, size: float) -> tuple[float, float]:
    """The part of a LoCon's change, |dW| = size |W|, that reaches a layer's output in this precision: (ours, where dW is
    added to the weights in that dtype). By many inputs: how an output is rounded with it and without."""
    dtype, random = DTYPES[mode], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.1, generator=random)
    layer = layer.to(dtype).requires_grad_(False)
    weight = layer.weight.double()
    out, into, *kernel = weight.shape
    x = torch.randn((8, into, 16, 16) if kernel else (8192, into), generator=random).to(dtype)
    down, up = (torch.randn(shape, generator=random) for shape in ((4, into, *kernel), (out, 4, *[1] * len(kernel))))
    tensors = {"lora_down.weight": nn.Parameter(down), "lora_up.weight": nn.Parameter(up)}
    up *= size * weight.norm() / low_rank(tensors, weight).norm().detach()
    change = low_rank(tensors, weight).detach().double()
    added = (weight + change).to(dtype).double() - weight

    def effect(of: Tensor) -> Tensor:
        if kernel:
            return nn.functional.conv2d(x.double(), of, padding=layer.padding)
        return nn.functional.linear(x.double(), of)

    with torch.no_grad(), torch.autocast("cpu", dtype):
        module = Module("one", layer, "locon", tensors, 4, 1.0, {}, Chance(0))
        with_it = module_output(module, x)
        up.zero_()
        without = module_output(module, x)
    wanted = effect(change)
    return tuple((((one * wanted).sum()) / wanted.square().sum()).item() for one in (with_it - without, effect(added)))


def module_output(module: Module, x: Tensor) -> Tensor:
    module.attach()
    try:
        return module.layer(x).double()
    finally:
        module.detach()
