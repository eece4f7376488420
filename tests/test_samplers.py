"""Samplers: sd-scripts' timesteps, Karras' noise levels for k_, and all of them find what there is to be found."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lorabuild.data.prompts import SAMPLERS
from lorabuild.nn.samplers import linear_multistep_weights, make_sampler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of diffusers

GOLDEN = json.loads((Path(__file__).parent / "goldens/sampling.json").read_text())["samplers"]


@pytest.mark.parametrize("name", GOLDEN)
def test_with_parity_timesteps_are_sd_scripts(name: str):
    sampler = make_sampler(name, 30, parity=True)
    assert type(sampler).__name__ == GOLDEN[name]["class"]
    assert [float(t) for t in sampler.timesteps] == pytest.approx(GOLDEN[name]["timesteps_30"], abs=1e-5)
    assert float(sampler.init_noise_sigma) == pytest.approx(GOLDEN[name]["init_noise_sigma"])


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.startswith("k_") and name in GOLDEN])
def test_without_k_they_are_the_same_without_parity(name: str):
    assert [float(t) for t in make_sampler(name, 30).timesteps] == pytest.approx(GOLDEN[name]["timesteps_30"], abs=1e-5)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.startswith("k_")])
def test_k_takes_karras_noise_levels(name: str):
    """Karras et al. 2022, eq. 5, with rho = 7 between SDXL's lowest and highest level."""
    sampler, count = make_sampler(name, 10), 10
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    low, high = (((1 - alphas) / alphas) ** 0.5)[[0, -1]]
    expected = (high ** (1 / 7) + np.arange(count) / (count - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    found = np.unique(np.asarray(sampler.sigmas, dtype=float))
    assert all(np.isclose(found, level, rtol=1e-4).any() for level in expected)
    plain = make_sampler(name, 10, parity=True)
    assert [float(t) for t in plain.timesteps] != [float(t) for t in sampler.timesteps]


def sampled(name: str, steps: int, prediction_type: str, zero_terminal: bool) -> float:
    """How far a sampler ends from 0.3, if all data are 0.3 and the prediction is exact."""
    sampler = make_sampler(name, steps, prediction_type, zero_terminal)
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=chance) * sampler.init_noise_sigma
    alphas = torch.as_tensor(sampler.alphas_cumprod).double().numpy()
    log_sigmas = np.log(((1 - alphas) / alphas) ** 0.5)
    extra = {"generator": chance} if "generator" in inspect.signature(sampler.step).parameters else {}
    for timestep in sampler.timesteps:
        seen = sampler.scale_model_input(x, timestep).double()
        sigma = float(np.exp(np.interp(float(timestep), np.arange(1000), log_sigmas)))
        signal = 1 / (1 + sigma**2) ** 0.5
        noise = (seen - signal * 0.3) / (sigma * signal)
        answer = noise if prediction_type == "epsilon" else signal * noise - sigma * signal * 0.3
        x = sampler.step(answer.float(), timestep, x, return_dict=False, **extra)[0]
    return (x - 0.3).abs().max().item()


@pytest.mark.parametrize("kind", [("epsilon", False), ("v_prediction", False), ("v_prediction", True)], ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_finds_the_data(name: str, kind: tuple[str, bool]):
    """pndm and dpmsolver stop at SDXL's lowest noise level, 0.03, of which three deviations may be left."""
    left = 0.12 if name in ("pndm", "dpmsolver") else 0.02
    for steps in (5, 20):
        assert sampled(name, steps, *kind) < left


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_or_two_are_enough_to_draw(name: str):
    for steps in (2, 3) if name == "pndm" else (1, 2, 3):  # pndm's one step is its last, at timestep 0
        assert sampled(name, steps, "epsilon", False) < 0.12


@pytest.mark.parametrize("name", SAMPLERS)
def test_with_zero_terminal_snr_it_begins_at_the_last_timestep(name: str):
    sampler = make_sampler(name, 10, "v_prediction", zero_terminal=True)
    assert float(sampler.timesteps[0]) > 998
    assert float(torch.as_tensor(sampler.alphas_cumprod)[-1]) < 1e-6


def test_linear_multistep_weights_integrate_the_lagrange_polynomials():
    sigmas = np.array([14.6, 9.0, 5.5, 3.0, 1.5, 0.6])
    weights = linear_multistep_weights(sigmas, 3, 4)
    nodes, grid = sigmas[[3, 2, 1, 0]], np.linspace(sigmas[3], sigmas[4], 20001)
    for one, weight in enumerate(weights):
        others = np.delete(nodes, one)
        values = np.prod([(grid - other) / (nodes[one] - other) for other in others], axis=0)
        assert weight == pytest.approx(np.trapezoid(values, grid), rel=1e-6)
