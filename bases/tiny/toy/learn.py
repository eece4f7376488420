"""One training loop for every part: AdamW, a cosine, averaged weights, and a state from which it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
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
    slow: tuple[str, ...] = ()  # parts of names of what has a share of these rates
    slow_share: float = 0.2
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
    optimizer = _Optimizer(named, plan)
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

    def __init__(self, named: Mapping[str, nn.Parameter], plan: Plan) -> None:
        def group(rate: float, of_muon: bool) -> list[dict[str, Any]]:
            taken = {name: p for name, p in named.items() if bool(plan.matrices and p.dim() > 1) is of_muon}
            slow = [p for name, p in taken.items() if any(part in name for part in plan.slow)]
            fast = [p for name, p in taken.items() if not any(part in name for part in plan.slow)]
            both = ((fast, rate), (slow, rate * plan.slow_share))
            return [{"params": part, "lr": one, "full": one} for part, one in both if part]

        rest, layers = group(plan.rate, False), group(plan.matrices, True)
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            self.parts.append(torch.optim.AdamW(rest, betas=plan.betas, weight_decay=0.0))
        if layers:
            self.parts.append(Muon(layers, plan.matrices))

    def step(self, share: float) -> None:
        """By gradients, which are spent, at this share of the rates."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["full"] * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
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
