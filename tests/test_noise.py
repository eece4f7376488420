"""Noise: sd-scripts' formulas, from streams of our own."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from lorabuild.nn.noise import batch_noise, draw_timesteps, generator, perturbation, pyramid_noise

GOLDENS = Path(__file__).parent / "goldens"
PYRAMID = json.loads((GOLDENS / "pyramid.json").read_text())["cases"]
SHAPE = (2, 4, 8, 12)
LATENTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
SAMPLES = [(0, "aa", 0), (0, "bb", 1)]
WHITE = {"multires_noise_iterations": None}
PYRAMIDAL = {"multires_noise_iterations": 6, "multires_noise_discount": 0.3}


@pytest.mark.parametrize("case", PYRAMID, ids=lambda case: f"{case['shape']}")
def test_pyramid_noise_is_that_of_sd_scripts(case: dict):
    ratios, normals = Random(case["python_seed"]), torch.Generator().manual_seed(case["torch_seed"])
    sizes = []

    def draw_normal(shape: tuple[int, ...]) -> torch.Tensor:
        sizes.append(list(shape[2:]))
        return torch.randn(shape, generator=normals)

    white = torch.randn(case["shape"], generator=normals)
    before = white.clone()
    noise = pyramid_noise(white, case["iterations"], case["discount"], ratios.random, draw_normal)
    assert sizes == [level[1:] for level in case["r_and_level_sizes"]]
    assert torch.rand(1, generator=normals).item() == pytest.approx(case["next_torch_rand"], abs=1e-8)
    assert torch.equal(white, before)
    expected = np.load(GOLDENS / "pyramid.npz")[f"out{case['case']}"]
    # Equal to the bit where the goldens were made; other processors may round a logarithm in a normal draw otherwise.
    np.testing.assert_allclose(noise[..., :: case["every"], :: case["every"]], expected, rtol=0, atol=2e-6)


def test_coarse_levels_add_energy_at_low_frequencies():
    def low(recipe: dict) -> float:
        noise = batch_noise(torch.zeros(1, 4, 64, 64), [(0, "aa", 0)], recipe, 1, 0, 0)
        return torch.nn.functional.avg_pool2d(noise, 8).std().item()

    assert low(WHITE) == pytest.approx(1 / 8, rel=0.2)
    assert low({"multires_noise_iterations": 12, "multires_noise_discount": 0.4}) == pytest.approx(0.17, rel=0.2)


def test_white_noise_of_a_sample_does_not_depend_on_its_company():
    both = batch_noise(LATENTS, SAMPLES, WHITE, 7, update=0, micro=0)
    alone = batch_noise(LATENTS[1:], SAMPLES[1:], WHITE, 7, update=3, micro=1)
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"update": 1}, {"micro": 1}, {"samples": [(1, "aa", 0), (1, "bb", 1)]}]
)
def test_noise_is_a_function_of_seed_samples_and_step(change: dict):
    draw = {"latents": LATENTS, "samples": SAMPLES, "recipe": PYRAMIDAL, "seed": 7, "update": 0, "micro": 0}
    torch.manual_seed(1)
    first = batch_noise(**draw)
    torch.manual_seed(2)
    assert torch.equal(first, batch_noise(**draw)), "something came from a global stream"
    assert not torch.equal(first, batch_noise(**draw | change))
    assert first.std().item() == pytest.approx(1, abs=1e-6)


def test_pyramid_noise_has_unit_deviation_over_the_batch_or_each_sample():
    each = batch_noise(LATENTS, SAMPLES, PYRAMIDAL | {"pyramid_std": "sample"}, 7, 0, 0)
    both = batch_noise(LATENTS, SAMPLES, PYRAMIDAL, 7, 0, 0)
    assert each.std(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert both.std().item() == pytest.approx(1, abs=1e-6)
    assert both.std(dim=(1, 2, 3)).tolist() != pytest.approx([1, 1], abs=1e-4)
    torch.testing.assert_close(each, both / both.std(dim=(1, 2, 3), keepdim=True))


# offset


def shift(recipe: dict, latents: torch.Tensor = LATENTS, **when: int) -> torch.Tensor:
    """What the offset adds to white noise, [B, C]: it is the same for all pixels of a channel."""
    when = {"seed": 7, "update": 0, "micro": 0} | when
    samples = SAMPLES[: len(latents)]
    added = batch_noise(latents, samples, recipe, **when) - batch_noise(latents, samples, WHITE, **when)
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=0, atol=1e-6)
    return added[:, :, 0, 0]


def test_an_offset_shifts_each_channel_of_each_sample_by_a_normal():
    one = shift({"noise_offset": 1.0})
    assert len({round(value, 6) for value in one.flatten().tolist()}) == one.numel()
    torch.testing.assert_close(shift({"noise_offset": 0.1}), one * 0.1, rtol=0, atol=1e-6)
    torch.testing.assert_close(shift({"noise_offset": 1.0}, LATENTS[:1]), one[:1], rtol=0, atol=1e-6)
    of_white = torch.randn(4, 1, 1, generator=generator(7, "noise", *SAMPLES[0])).flatten()
    assert not torch.isclose(one[0], of_white, atol=1e-3).any(), "a stream of its own, not the white noise's"
    many = [shift({"noise_offset": 1.0}, seed=seed) for seed in range(200)]
    assert torch.stack(many).std().item() == pytest.approx(1, abs=0.05)
    assert torch.stack(many).mean().item() == pytest.approx(0, abs=0.1)


def test_a_random_strength_is_even_and_one_for_a_batch():
    normal, strengths = shift({"noise_offset": 1.0}), []
    for update in range(200):
        added = shift({"noise_offset": 0.5, "noise_offset_random_strength": True}, update=update) / normal
        assert added.flatten().tolist() == pytest.approx([added[0, 0].item()] * added.numel(), rel=1e-3)
        strengths.append(added[0, 0].item())
    assert 0 <= min(strengths) < 0.05 and 0.45 < max(strengths) <= 0.5
    assert sum(strengths) / 200 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("scale", [0.5, -8.0])
def test_an_adaptive_offset_follows_the_mean_of_each_channel_and_is_never_below_0(scale: float):
    means = LATENTS.mean(dim=(2, 3)).abs()
    expected = (0.3 + scale * means).clamp(min=0) * shift({"noise_offset": 1.0})
    found = shift({"noise_offset": 0.3, "adaptive_noise_scale": scale})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found == 0).any() == (scale < 0)


def test_pyramid_noise_is_laid_over_the_offset():
    """sd-scripts' order: the offset, too, is scaled to unit deviation. A huge one is then all that is left of the noise."""
    noise = batch_noise(LATENTS, SAMPLES, PYRAMIDAL | {"noise_offset": 1e4}, 7, 0, 0)
    assert noise.std().item() == pytest.approx(1, abs=1e-6)
    normal = shift({"noise_offset": 1.0})
    whole = normal[:, :, None, None].expand(SHAPE)
    torch.testing.assert_close(noise, whole / whole.std(), rtol=0, atol=1e-3)


# input perturbation and timesteps


def test_a_perturbation_is_white_noise_of_its_own():
    def perturb(seed: int = 7, update: int = 0, **recipe: object) -> torch.Tensor:
        return perturbation((2, 4, 64, 64), SAMPLES, {"ip_noise_gamma": 0.1, **recipe}, seed, update, 0)

    white = batch_noise(torch.zeros(2, 4, 64, 64), SAMPLES, WHITE, 7, 0, 0)
    assert perturb().std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.corrcoef(torch.stack([perturb().flatten(), white.flatten()]))[0, 1].abs() < 0.02
    assert torch.equal(perturb(update=5), perturb())
    weaker = perturb(ip_noise_gamma_random_strength=True) / perturb()
    assert weaker.min() > 0 and weaker.max() < 1 and weaker.std() < 1e-6
    other = perturb(ip_noise_gamma_random_strength=True, update=1) / perturb()
    assert other.mean() != pytest.approx(weaker.mean().item(), rel=1e-3)
    assert perturbation((2, 4, 64, 64), SAMPLES, {}, 7, 0, 0) is None


def test_timesteps_are_even_between_their_bounds():
    samples = [(0, "aa", number) for number in range(2000)]
    drawn = draw_timesteps(samples, {"min_timestep": 200, "max_timestep": 210}, 1)
    assert sorted(set(drawn.tolist())) == list(range(200, 210)), "the upper bound is not drawn"
    assert min(drawn.bincount(minlength=210)[200:]) > 150
    assert set(draw_timesteps(samples, {"min_timestep": 300, "max_timestep": 300}, 1).tolist()) == {300}
    whole = draw_timesteps(samples, {}, 1)
    assert whole.min() < 5 and whole.max() > 994
    assert torch.equal(whole[7:9], draw_timesteps(samples[7:9], {}, 1))


def test_generators_differ_by_purpose():
    assert not torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "b")))
