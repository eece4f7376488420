"""What training minimises: how noise hides a latent, what the network should answer, and how an error is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorabuild.nn.lowrank import single

if TYPE_CHECKING:
    from lorabuild.nn.batches import MicroBatch

STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
LATENT_SCALE = 0.13025  # of SDXL's VAE: latents are stored as encoded and trained at about unit variance
MOST_SNR = 1000.0  # sd-scripts caps the SNR here in all weights but min-SNR's: only t = 0 (1175) is above

# The keys of a recipe that noise and objective read. Without them it is plain: white noise, all timesteps, mean square.
KEYS = """
    noise_offset noise_offset_random_strength adaptive_noise_scale multires_noise_iterations multires_noise_discount
    pyramid_std ip_noise_gamma ip_noise_gamma_random_strength min_timestep max_timestep zero_terminal_snr snr_weights
    min_snr_gamma scale_v_pred_loss_like_noise_pred v_pred_like_loss debiased_estimation_loss loss_type huber_c
    huber_scale huber_schedule
"""


def plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without its own noise and objective: what trainings of different recipes are measured by alike."""
    return {key: value for key, value in recipe.items() if key not in KEYS.split()}


@dataclass(frozen=True)
class Objective:
    """The objective of one training. Its tables have an entry a timestep and lie on the device that trains."""

    kept: Tensor  # [1000] ā_t, the share of the image's variance that is left
    predicts_v: bool
    loss_type: str
    thresholds: Tensor | None  # [1000] where huber and smooth_l1 bend
    weights: Tensor | None  # [1000] of a sample's loss; None: all 1

    @classmethod
    def of(cls, recipe: Mapping[str, Any], prediction_type: str = "epsilon", device: str = "cpu") -> Objective:
        """The objective that a recipe's settings make on a base that predicts "epsilon" or "v_prediction"."""
        kept = table = alphas_cumprod()
        if recipe.get("zero_terminal_snr"):
            kept = zero_terminal(kept)
            table = table if recipe.get("snr_weights") == "peer" else kept
        predicts_v, loss_type = prediction_type == "v_prediction", recipe.get("loss_type", "l2")
        thresholds = huber_thresholds(recipe, kept).to(device) if loss_type in BENT else None
        weights = timestep_weights(recipe, predicts_v, table)
        return cls(
            kept.to(device), predicts_v, loss_type, thresholds, weights if weights is None else weights.to(device)
        )

    def noisy(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """What the network sees and what it should answer, both [B, 4, h, w] float32, on the device.

        A batch's perturbation is added to what is seen alone, so that the answer is of the noise without it.
        """
        device = self.kept.device
        latents, noise, timesteps = (one.to(device) for one in (batch.latents, batch.noise, batch.timesteps))
        seen = noise if batch.perturbation is None else noise + batch.perturbation.to(device)
        target = velocity(latents, noise, timesteps, self.kept) if self.predicts_v else noise
        return add_noise(latents, seen, timesteps, self.kept), target

    def losses(self, prediction: Tensor, target: Tensor, batch: MicroBatch) -> Tensor:
        """The loss of each sample [B], float32: the mean over channels and pixels, masked, and then weighted.

        A mask scales the error of each pixel and not what it is divided by, as in sd-scripts: a sample that is half
        masked counts half.
        """
        timesteps = batch.timesteps.to(self.kept.device)
        difference = single(prediction) - single(target)
        if self.thresholds is None:
            errors = difference.abs() if self.loss_type == "l1" else difference.square()
        else:
            errors = BENT[self.loss_type](difference, self.thresholds[timesteps].view(-1, 1, 1, 1))
        if batch.masks is not None:
            errors = errors * batch.masks.to(errors.device)
        losses = errors.mean(dim=(1, 2, 3))
        if batch.weights is not None:
            losses = losses * batch.weights.to(losses.device)
        return losses if self.weights is None else losses * self.weights[timesteps]


# the way from image to noise


def alphas_cumprod() -> Tensor:
    """The share of the image's variance that is left at each of the 1000 timesteps (Ho et al. 2020), [1000] float32.

    "Scaled linear": the roots of the betas are evenly spaced, as Stable Diffusion was trained.
    """
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def zero_terminal(kept: Tensor) -> Tensor:
    """ā shifted and scaled so that nothing of the image is left at the end (Lin et al. 2023, algorithm 1), [1000].

    √ā goes straight to 0 at the last timestep and stays what it was at the first.
    """
    signal = kept.sqrt()
    return ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, kept: Tensor) -> Tensor:
    """x_t = √ā_t x_0 + √(1 - ā_t) ε (Ho et al. 2020, eq. 4). latents and noise [B, C, H, W], timesteps [B]."""
    share = kept[timesteps].view(-1, 1, 1, 1)
    return share.sqrt() * latents + (1.0 - share).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor, kept: Tensor) -> Tensor:
    """v = √ā_t ε - √(1 - ā_t) x_0 (Salimans and Ho 2022, appendix D). Shapes as in `add_noise`."""
    share = kept[timesteps].view(-1, 1, 1, 1)
    return share.sqrt() * noise - (1.0 - share).sqrt() * latents


# how an error is counted


def timestep_weights(recipe: Mapping[str, Any], predicts_v: bool, kept: Tensor) -> Tensor | None:
    """What the loss of a sample is multiplied by at each timestep, [1000] float32; None without any such setting.

    By SNR = ā / (1 - ā): min-SNR (Hang et al. 2023), debiased estimation (Yu et al. 2023), and sd-scripts' two scales
    between the losses of v and epsilon. They multiply, so their order does not matter. The SNR may be 0 (zero-terminal)
    for v alone; for epsilon it is refused by the manifest.
    """
    snr = kept.double() / (1.0 - kept.double())
    capped = snr.clamp(max=MOST_SNR)
    factors = []
    if gamma := recipe.get("min_snr_gamma"):
        factors.append(snr.clamp(max=gamma) / (snr + 1.0) if predicts_v else snr.clamp(max=gamma) / snr)
    if recipe.get("scale_v_pred_loss_like_noise_pred"):
        factors.append(capped / (capped + 1.0))
    if extra := recipe.get("v_pred_like_loss"):
        factors.append(1.0 + extra * (capped + 1.0) / capped)
    if recipe.get("debiased_estimation_loss"):
        factors.append(1.0 / (capped + 1.0) if predicts_v else capped.rsqrt())
    return math.prod(factors[1:], start=factors[0]).float() if factors else None


def huber_thresholds(recipe: Mapping[str, Any], kept: Tensor) -> Tensor:
    """How large an error is where huber and smooth_l1 turn from square to linear, at each timestep, [1000] float32.

    "snr" falls from about 1 at the image to huber_c at the noise, "exponential" too, but evenly in its logarithm;
    huber_scale multiplies it and "constant" (sd-scripts; Khrapov et al. 2024).
    """
    c, scale = recipe.get("huber_c", 0.1), recipe.get("huber_scale", 1.0)
    schedule = recipe.get("huber_schedule", "snr")
    if schedule == "snr":
        sigmas = ((1.0 - kept.double()) / kept.double()).sqrt()
        return ((1.0 - c) / (1.0 + sigmas) ** 2 + c).float()
    if schedule == "exponential":
        return (scale * torch.exp(math.log(c) * torch.arange(STEPS, dtype=torch.float64) / STEPS)).float()
    return torch.full((STEPS,), c * scale)


def huber(difference: Tensor, c: Tensor) -> Tensor:
    """2c (√(d² + c²) - c): d² where d is small against c, 2c|d| where it is large (pseudo-Huber; Charbonnier et al.)."""
    return 2.0 * c * ((difference.square() + c.square()).sqrt() - c)


def smooth_l1(difference: Tensor, c: Tensor) -> Tensor:
    """2 (√(d² + c²) - c): `huber` divided by c, so 2|d| where d is large."""
    return 2.0 * ((difference.square() + c.square()).sqrt() - c)


BENT = {"huber": huber, "smooth_l1": smooth_l1}
