"""ClybW, LodeW and Lion: the published trajectories, and the naive form a tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from lorabuild.nn import clybw
from lorabuild.nn.clybw import ClybW, LodeW
from lorabuild.nn.lion import Lion

GOLDENS = json.loads((Path(__file__).parent / "goldens/clybw.json").read_text())
STEPS = (1, 2, 5, 20)
SHAPES = [(4, 3), (2, 3, 2, 2), (4, 3), (5,), (2,), (1, 2), (3, 1), (1, 1), ()]
DEFAULTS = {"betas": (0.95, 0.95), "amp_fac": 2, "eps": 1e-8, "weight_decay": 0.1, "centralization": 0.5}
DEFAULTS |= {"normalization": 0.5, "normalize_channels": True, "normalization_mode": "full"}


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: f"{golden['optimizer']}-{golden['kwargs']}")
def test_trajectories_are_the_published_codes_to_every_digit(golden: dict[str, Any]):
    parameters = [Parameter(torch.tensor(v).reshape(s)) for v, s in zip(golden["init"], golden["shapes"], strict=True)]
    targets = [torch.tensor(v).reshape(s) for v, s in zip(golden["target"], golden["shapes"], strict=True)]
    optimizer = getattr(clybw, golden["optimizer"])(parameters, lr=golden["lr"], **golden["kwargs"])
    found = []
    for step in range(1, max(STEPS) + 1):
        optimizer.zero_grad()
        sum(((p - t) ** 2).sum() for p, t in zip(parameters, targets, strict=True)).backward()
        optimizer.step()
        if step in STEPS:
            found.append([[float(f"{value:.8g}") for value in p.flatten().tolist()] for p in parameters])
    assert found == golden["params_after_step_1_2_5_20"]


def naive(p: Tensor, g: Tensor, state: dict[str, Any], lr: float, o: dict[str, Any]) -> Tensor:
    """The definition, line by line, of one tensor."""
    rows = tuple(range(1, g.dim()))
    g = g - g.mean(rows, keepdim=True) * o["centralization"]
    by_row = o["normalize_channels"] and g.dim() > 1 and g.numel() > len(g)
    if o["normalization"] and (by_row or g.numel() > 2):
        full = g / ((g.std(rows, keepdim=True) if by_row else g.std()) + 1e-8)
        g = full if o["normalization_mode"] == "full" else torch.lerp(g, full, o["normalization"])
    (beta1, beta2), t = o["betas"], state.setdefault("t", 0) + 1
    m = state.get("m", torch.zeros_like(p)) * beta1 + (1 - beta1) * g
    g = g + m * o["amp_fac"]
    v = state.get("v", torch.zeros_like(p)) * beta2 + (1 - beta2) * g * g
    state |= {"t": t, "m": m, "v": v}
    s = lr / (1 - beta1**t)
    return p * (1 - s * o["weight_decay"]) - s * g / (v.sqrt() / (1 - beta2**t) ** 0.5 + o["eps"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization_mode": "lerp"},
        {"normalization": 0.3, "normalization_mode": "lerp"},
        {"normalization": 0.3},
        {"normalize_channels": False},
        {"normalization": 0.0, "centralization": 1.0, "weight_decay": 0.0},
        {"betas": (0.9, 0.99), "amp_fac": 1.0, "eps": 1e-4},
    ],
    ids=str,
)
def test_all_tensors_at_once_is_the_definition_of_each(options: dict[str, Any]):
    noise = torch.Generator().manual_seed(1)
    parameters = [Parameter(torch.randn(shape, generator=noise)) for shape in SHAPES]
    expected, states = [p.detach().clone() for p in parameters], [{} for _ in parameters]
    optimizer = ClybW(parameters, lr=1e-2, **options)
    for step in range(5):
        for number, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=noise)
            if number == 0 and step < 2:  # one that begins to learn later has its own count
                p.grad = None
                continue
            expected[number] = naive(expected[number], p.grad.clone(), states[number], 1e-2, DEFAULTS | options)
        optimizer.step()
    for p, other in zip(parameters, expected, strict=True):
        assert torch.isfinite(p).all()
        torch.testing.assert_close(p.detach(), other, rtol=2e-6, atol=2e-6)


def test_the_part_of_normalisation_counts_in_lerp_alone():
    def after(**options: Any) -> Tensor:
        parameter = Parameter(torch.arange(6.0).reshape(2, 3))
        parameter.grad = torch.tensor([[1.0, 2, 4], [1, 0, 5]])
        ClybW([parameter], eps=1.0, **options).step()
        return parameter.detach()

    assert torch.equal(after(normalization=0.2), after(normalization=0.9))
    lerp = {"normalization_mode": "lerp"}
    assert not torch.equal(after(normalization=0.2, **lerp), after(normalization=0.9, **lerp))
    assert torch.equal(after(normalization=1.0, **lerp), after())


def test_lodew_is_clybw_without_normalisation():
    def after(make: Any, **options: Any) -> Tensor:
        parameter = Parameter(torch.arange(6.0).reshape(2, 3))
        optimizer = make([parameter], lr=1e-2, **options)
        for _ in range(3):
            parameter.grad = parameter.detach() ** 2 - 1
            optimizer.step()
        return parameter.detach()

    off = {"normalization": 0.0, "centralization": 0.0, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    assert torch.equal(after(LodeW), after(ClybW, **off))


def test_lion_is_the_papers_algorithm():
    noise = torch.Generator().manual_seed(2)
    parameters = [Parameter(torch.randn(shape, generator=noise)) for shape in SHAPES]
    expected, means = [p.detach().clone() for p in parameters], [torch.zeros_like(p) for p in parameters]
    optimizer = Lion(parameters, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(4):
        for number, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=noise)
            mixed = means[number] * 0.9 + 0.1 * p.grad
            expected[number] = expected[number] * (1 - 1e-3) - 1e-2 * mixed.sign()
            means[number] = means[number] * 0.99 + 0.01 * p.grad
        optimizer.step()
    for p, other in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), other, rtol=1e-6, atol=1e-6)
