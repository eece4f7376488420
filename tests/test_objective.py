"""The objective: sd-scripts' weights by timestep, targets and losses, against its goldens and formulas in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lorabuild.manifest.tables.recipe import RecipeTable
from lorabuild.nn.batches import MicroBatch
from lorabuild.nn.objective import KEYS, Objective, alphas_cumprod, huber_thresholds, plain, zero_terminal

GOLDEN = json.loads((Path(__file__).parent / "goldens/snr_weights.json").read_text())
AT = torch.tensor(GOLDEN["timesteps"])
EPSILON, V = "epsilon", "v_prediction"
ZERO_TERMINAL = {"zero_terminal_snr": True}


def golden(name: str) -> Tensor:
    return torch.tensor(GOLDEN[name], dtype=torch.float64)


def same(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def batch(size: int = 4, **changes: Any) -> MicroBatch:
    draw = torch.Generator().manual_seed(5)
    latents, noise = torch.randn(2, size, 4, 6, 8, generator=draw)
    timesteps = torch.randint(0, 1000, (size,), generator=draw)
    fields = {"latents": latents, "noise": noise, "timesteps": timesteps, "captions": [""] * size, "sizes": None}
    return MicroBatch(**fields | changes)


def losses(recipe: dict[str, Any], prediction_type: str = EPSILON, **changes: Any) -> Tensor:
    """Of a prediction that is all 0.1."""
    given = batch(**changes)
    objective = Objective.of(recipe, prediction_type)
    _, target = objective.noisy(given)
    return objective.losses(torch.full_like(target, 0.1), target, given)


# weights and schedules by timestep


@pytest.mark.parametrize(
    ("name", "prediction_type", "recipe"),
    [
        *[(f"min_snr_eps_gamma{gamma}", EPSILON, {"min_snr_gamma": gamma}) for gamma in (1, 5, 20)],
        *[(f"min_snr_v_gamma{gamma}", V, {"min_snr_gamma": gamma}) for gamma in (1, 5, 20)],
        ("debiased_eps", EPSILON, {"debiased_estimation_loss": True}),
        ("debiased_v", V, {"debiased_estimation_loss": True}),
        ("scale_v_like_noise", V, {"scale_v_pred_loss_like_noise_pred": True}),
        ("v_pred_like_loss_0.1", EPSILON, {"v_pred_like_loss": 0.1}),
        ("min_snr_v_gamma5", V, {"min_snr_gamma": 5, "snr_weights": "peer"} | ZERO_TERMINAL),
    ],
)
def test_weights_are_those_of_sd_scripts(name: str, prediction_type: str, recipe: dict):
    weights = Objective.of(recipe, prediction_type).weights
    same(weights[AT], golden(name))
    assert weights.shape == (1000,)


def test_weights_multiply_in_whatever_order():
    parts = [{"min_snr_gamma": 5.0}, {"scale_v_pred_loss_like_noise_pred": True}, {"debiased_estimation_loss": True}]
    alone = [Objective.of(part, V).weights for part in parts]
    together = Objective.of(parts[0] | parts[1] | parts[2], V).weights
    torch.testing.assert_close(together, alone[0] * alone[1] * alone[2], rtol=1e-6, atol=0)


def test_the_schedules_are_those_of_sd_scripts():
    same(alphas_cumprod()[AT], golden("alphas_cumprod"))
    same(zero_terminal(alphas_cumprod())[AT], golden("ztsnr_alphas_cumprod"))
    same(Objective.of(ZERO_TERMINAL, V).kept[AT], golden("ztsnr_alphas_cumprod"))


@pytest.mark.parametrize("schedule", ["snr", "exponential", "constant"])
def test_thresholds_are_those_of_sd_scripts(schedule: str):
    thresholds = huber_thresholds({"huber_schedule": schedule}, alphas_cumprod())
    same(thresholds[AT], golden(f"huber_c_{schedule}"))
    scaled = huber_thresholds({"huber_schedule": schedule, "huber_scale": 3.0}, alphas_cumprod())
    torch.testing.assert_close(scaled, thresholds * (1 if schedule == "snr" else 3))


def test_by_default_weights_see_the_rescaled_snr_and_stay_finite():
    """sd-scripts' table is of before the schedule was rescaled; at the end the true SNR is 0, and so is v's weight."""
    recipe = {"min_snr_gamma": 5.0} | ZERO_TERMINAL
    kept = golden("ztsnr_alphas_cumprod")
    snr = kept / (1 - kept)
    weights = Objective.of(recipe, V).weights[AT].double()
    torch.testing.assert_close(weights, snr.clamp(max=5) / (snr + 1), rtol=1e-5, atol=0)
    assert weights[-1] == 0
    every = recipe | {"debiased_estimation_loss": True, "scale_v_pred_loss_like_noise_pred": True}
    assert torch.isfinite(Objective.of(every, V).weights).all()
    assert torch.isfinite(huber_thresholds({}, zero_terminal(alphas_cumprod()))).all()


# input and target


@pytest.mark.parametrize("zero_snr", [False, True])
def test_input_and_v_target_are_the_schedulers(zero_snr: bool):
    """diffusers' own DDPM, which was written apart from sd-scripts and from this."""
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_snr
    )
    given = batch(timesteps=torch.tensor([0, 400, 998, 999]))
    noisy, target = Objective.of({"zero_terminal_snr": zero_snr}, V).noisy(given)
    expected = scheduler.add_noise(given.latents, given.noise, given.timesteps)
    torch.testing.assert_close(noisy, expected, rtol=0, atol=2e-6)
    velocity = scheduler.get_velocity(given.latents, given.noise, given.timesteps)
    torch.testing.assert_close(target, velocity, rtol=0, atol=2e-6)
    assert torch.equal(noisy[3], given.noise[3]) == zero_snr


@pytest.mark.parametrize("prediction_type", [EPSILON, V])
def test_a_perturbation_changes_the_input_and_not_the_target(prediction_type: str):
    objective, more = Objective.of({}, prediction_type), torch.full((4, 4, 6, 8), 0.5)
    noisy, target = objective.noisy(batch())
    perturbed, same_target = objective.noisy(batch(perturbation=more))
    assert torch.equal(target, same_target)
    left = 1 - objective.kept[batch().timesteps].view(-1, 1, 1, 1)
    torch.testing.assert_close(perturbed - noisy, more * left.sqrt(), rtol=0, atol=1e-6)


# losses


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
def test_losses_are_their_formulas(loss_type: str):
    given = batch()
    c = (0.9 / (1 + ((1 - alphas_cumprod().double()) / alphas_cumprod().double()).sqrt()) ** 2 + 0.1)[given.timesteps]
    c = c.view(-1, 1, 1, 1)
    difference = given.noise.double() - 0.1
    bent = (difference**2 + c**2).sqrt() - c
    errors = {"l2": difference**2, "l1": difference.abs(), "huber": 2 * c * bent, "smooth_l1": 2 * bent}[loss_type]
    found = losses({"loss_type": loss_type})
    assert found.shape == (4,) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), errors.mean(dim=(1, 2, 3)), rtol=1e-6, atol=0)


def test_a_mask_scales_errors_and_not_what_they_are_divided_by():
    masks = torch.zeros(4, 1, 6, 8)
    masks[:, :, :3] = 1
    masks[3] = 0.25
    found, whole = losses({}, masks=masks), losses({})
    half = (batch().noise[:, :, :3] - 0.1).square().sum(dim=(1, 2, 3)) / (4 * 6 * 8)
    torch.testing.assert_close(found[:3], half[:3])
    torch.testing.assert_close(found[3], whole[3] / 4)


def test_samples_and_timesteps_weigh_their_own_losses():
    given = batch()
    weights, by_time = torch.tensor([1.0, 0.5, 0.0, 2.0]), Objective.of({"min_snr_gamma": 5.0}).weights
    found = losses({"min_snr_gamma": 5.0}, weights=weights)
    torch.testing.assert_close(found, losses({}) * weights * by_time[given.timesteps])


def test_a_prediction_in_half_precision_is_compared_in_float32():
    given = batch()
    objective = Objective.of({})
    prediction = torch.full_like(given.noise, 300.0, dtype=torch.float16)  # its square is no half
    assert torch.isfinite(objective.losses(prediction, given.noise, given)).all()


def test_a_plain_recipe_lacks_all_that_shapes_noise_and_loss():
    assert set(KEYS.split()) <= set(RecipeTable.model_fields)
    recipe = dict.fromkeys(KEYS.split(), 1) | {"train_batch_size": 3}
    assert plain(recipe) == {"train_batch_size": 3}
