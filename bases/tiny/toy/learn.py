"""One training loop for every part: AdamW, a cosine, averaged weights, and a state from which it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toy.muon import Muon

Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How long, in updates, and how fast."""

    steps: int
    rate: float
    warmup: int = 50
    floor: float = 0.02  # of the rate, at the end
    averaging: float = 0.998  # share of the average that an update leaves
    matrices: float = 0.0  # rate of Muon for the weights of layers; 0: all is AdamW's
    betas: tuple[float, float] = (0.9, 0.98)
    save_every: int = 100
    tell_every: int = 50

    def share_at(self, step: int) -> float:
        """Of the rates: linear warm-up, then half a cosine down to `floor`."""
        wave = 0.5 * (1 + cos(pi * min(1.0, step / self.steps)))
        return min(1.0, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * wave)


def learn(
    name: str,
    folder: Path,
    modules: Mapping[str, nn.Module],
    loss_at: Callable[[int], Tensor],
    plan: Plan,
    log: Log,
    measure: Callable[[], str] | None = None,
    of: str = "",
) -> None:
    """Train `modules` by `loss_at(step)`; afterwards they hold their averaged weights.

    The state is kept in `folder/<name>.state`, so that a run that was stopped goes on, and one that is given more steps
    does, too. Whatever is random in `loss_at` must come from its step alone. `measure` is called with averaged weights
    at each save. `of` is what the training stands on, such as a digest: a state of something else is not gone on from.
    """
    named = {
        f"{key}.{n}": p for key, module in modules.items() for n, p in module.named_parameters() if p.requires_grad
    }
    optimizer = _Optimizer(named.values(), plan)
    averages = {n: p.detach().clone() for n, p in named.items()}
    path, step = folder / f"{name}.state", 0
    if path.exists():
        step = _load(path, of, named, averages, optimizer)
        log(f"{name}: goes on at {step}" if step else f"{name}: begins anew: what it stands on has changed")
    began, running = time.monotonic(), None
    first = step
    while step < plan.steps:
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimizer.step(plan.share_at(step))
        step += 1
        with torch.no_grad():
            kept = min(plan.averaging, (1 + step) / (10 + step))  # the first weights are soon forgotten
            torch._foreach_lerp_(list(averages.values()), [p.detach() for p in named.values()], 1 - kept)
        if step % plan.tell_every == 0:
            value = loss.item()
            running = value if running is None else 0.7 * running + 0.3 * value
            speed = (step - first) / (time.monotonic() - began)
            log(f"{name}: {step}/{plan.steps} loss {running:.4f}, {speed:.2f} updates/s")
        if step % plan.save_every == 0 or step == plan.steps:
            _save(path, of, step, named, averages, optimizer)
            if measure:
                with averaged(named, averages):
                    log(f"{name}: {step} {measure()}")
    with torch.no_grad():
        for n, parameter in named.items():
            parameter.copy_(averages[n])


class _Optimizer:
    """AdamW; for the weights of layers, where `plan` has a rate for them, Muon."""

    def __init__(self, parameters: Iterable[nn.Parameter], plan: Plan) -> None:
        parameters = list(parameters)
        layers = [p for p in parameters if plan.matrices and p.dim() > 1]
        rest = [p for p in parameters if not plan.matrices or p.dim() <= 1]
        self.parts = [(torch.optim.AdamW(rest, plan.rate, betas=plan.betas, weight_decay=0.0), plan.rate)]
        if layers:
            self.parts.append((Muon(layers, plan.matrices), plan.matrices))

    def step(self, share: float) -> None:
        """By gradients, which are spent, at this share of the rates."""
        for part, rate in self.parts:
            part.param_groups[0]["lr"] = rate * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part, _ in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for (part, _), state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class averaged:
    """Within a with block `named` parameters hold their averages."""

    def __init__(self, named: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> None:
        self.named, self.averages = named, averages

    @torch.no_grad()
    def __enter__(self) -> None:
        self.own = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        for name, parameter in self.named.items():
            parameter.copy_(self.averages[name])

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(self.own[name])


def _save(path: Path, of: str, step: int, named: Mapping[str, Tensor], averages: Any, optimizer: _Optimizer) -> None:
    weights = {name: parameter.detach() for name, parameter in named.items()}
    state = {"of": of, "step": step, "weights": weights, "averages": averages, "optimizer": optimizer.state_dict()}
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


@torch.no_grad()
def _load(path: Path, of: str, named: Mapping[str, Tensor], averages: dict[str, Tensor], optimizer: _Optimizer) -> int:
    """The step at which to go on: 0 where the state is of something else."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["of"] != of:
        return 0
    for name, parameter in named.items():
        parameter.copy_(state["weights"][name])
        averages[name].copy_(state["averages"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
