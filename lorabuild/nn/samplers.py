"""Make the solver that goes by one of sd-scripts' sampler names, with the noise levels that SDXL was trained with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from lorabuild.nn.objective import BETA_END, BETA_START, STEPS, alphas_cumprod, zero_terminal

BETAS = {
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": STEPS,
}
LAST_ALPHA = 2.0**-24  # of zero terminal SNR: not 0, so that the noise level 1/alpha stays finite (as diffusers has it)
LMS_ORDER = 4
PRK_STEPS = 4  # that pndm begins with, by Runge-Kutta; with fewer it does without


class LinearMultistep(EulerDiscreteScheduler):
    """k-diffusion's LMS: Adams-Bashforth over the uneven noise levels, of order 4 (K. Crowson, `sample_lms`).

    diffusers' own integrates its coefficients numerically and needs scipy for it; of polynomials they are exact.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._slopes: list[Tensor] = []

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False
    ) -> tuple[Tensor, ...]:
        if self.step_index is None:
            self._init_step_index(timestep)
        sigmas, index = self.sigmas.double().numpy(), self.step_index
        sigma = float(sigmas[index])
        slope = model_output
        if self.config.prediction_type == "v_prediction":
            clean = sample / (sigma**2 + 1) - model_output * sigma / (sigma**2 + 1) ** 0.5
            slope = (sample - clean) / sigma
        self._slopes = [slope, *self._slopes[: LMS_ORDER - 1]]
        weights = linear_multistep_weights(sigmas, index, len(self._slopes))
        self._step_index += 1
        return (sample + sum(weight * one for weight, one in zip(weights, self._slopes, strict=True)),)


def linear_multistep_weights(sigmas: np.ndarray, index: int, order: int) -> list[float]:
    """∫ of each Lagrange polynomial through the last `order` noise levels, newest first, over the next step."""
    nodes = [sigmas[index - back] for back in range(order)]
    weights = []
    for one, node in enumerate(nodes):
        others = np.delete(nodes, one)
        area = np.polyint(np.atleast_1d(np.poly(others)) / np.prod(node - others))
        weights.append(float(np.polyval(area, sigmas[index + 1]) - np.polyval(area, sigmas[index])))
    return weights


# name -> class, and what it is told beside the noise levels
KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {}),
    "lms": (LinearMultistep, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm_2": (KDPM2DiscreteScheduler, {}),
    "dpm_2_a": (KDPM2AncestralDiscreteScheduler, {}),
    # The first-order formula of this one has no limit at noise level 0: it ends a step before.
    "dpmsolver": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": (DPMSolverSinglestepScheduler, {}),
}
TOLD = "use_karras_sigmas"


def make_sampler(
    name: str, steps: int, prediction_type: str = "epsilon", zero_terminal: bool = False, parity: bool = False
) -> Any:
    """A scheduler of diffusers' with its `steps` timesteps set.

    `name` is one of prompts.SAMPLERS; with `k_` its noise levels are Karras' (Karras et al. 2022, eq. 5). `parity`: as
    sd-scripts has it, where `k_` changes nothing and ddim clips what it takes for the finished latents to -1..1.
    `zero_terminal`: the noise levels of Lin et al. 2024 (arXiv 2305.08891), and then the last timestep comes first.
    """
    karras = name.startswith("k_") and not parity
    kind, options = KINDS[name.removeprefix("k_")]
    known = inspect.signature(kind.__init__ if isinstance(kind, type) else kind).parameters
    told = {**BETAS, "prediction_type": prediction_type, **options}
    if zero_terminal:
        told |= {"trained_betas": _zero_terminal_betas()}
        if kind in (DDIMScheduler, PNDMScheduler):  # by themselves these leave the last timesteps out
            told |= {"timestep_spacing": "trailing"}
    if kind is PNDMScheduler and steps < PRK_STEPS:
        told |= {"skip_prk_steps": True}
    if parity and kind is DDIMScheduler:
        told |= {"clip_sample": True}
    if karras and TOLD in known:
        told |= {TOLD: True}
    sampler = kind(**told)
    sampler.set_timesteps(steps)
    if karras and TOLD not in known:  # euler_a steps over whatever noise levels it is given
        levels = EulerDiscreteScheduler(**told, **{TOLD: True})
        levels.set_timesteps(steps)
        sampler.sigmas, sampler.timesteps = levels.sigmas, levels.timesteps
    return sampler


@cache
def _zero_terminal_betas() -> tuple[float, ...]:
    """SDXL's betas such that the last timestep is noise alone."""
    kept = zero_terminal(alphas_cumprod()).double().clamp(min=LAST_ALPHA)
    return tuple((1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])).tolist())
