"""Which settings of noise and loss go together, by themselves and on a base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorabuild.manifest.values import Misfit

if TYPE_CHECKING:
    from lorabuild.manifest.tables.dataset import DatasetTable
    from lorabuild.manifest.tables.recipe import RecipeTable

BENT = ("huber", "smooth_l1")  # the losses that huber_c is for
WEIGHTS = ("min_snr_gamma", "scale_v_pred_loss_like_noise_pred", "debiased_estimation_loss")  # that v may have


def misfits(recipe: RecipeTable) -> Iterator[Misfit]:
    """What does not go together whatever the base; sd-scripts finds it after minutes, or never."""
    if recipe.adaptive_noise_scale and not recipe.noise_offset:
        yield Misfit("adaptive_noise_scale", "it adapts noise_offset, which is 0: set that, too")
    if recipe.min_timestep > recipe.max_timestep:
        yield Misfit("min_timestep", f"it is above max_timestep, {recipe.max_timestep}: no timestep is left")
    if recipe.min_timestep == recipe.max_timestep == 1000:
        yield Misfit("min_timestep", "the timesteps are 0 to 999")


def settle(recipe: RecipeTable) -> None:
    """Set back what has no effect: another value of it is no other training."""
    for key, works in _works(recipe).items():
        if not works:
            setattr(recipe, key, type(recipe).model_fields[key].default)


def _works(recipe: RecipeTable) -> dict[str, Any]:
    bent = recipe.loss_type in BENT
    return {
        "multires_noise_discount": recipe.multires_noise_iterations,
        "pyramid_std": recipe.multires_noise_iterations,
        "noise_offset_random_strength": recipe.noise_offset,
        "ip_noise_gamma_random_strength": recipe.ip_noise_gamma,
        "huber_c": bent,
        "huber_schedule": bent,
        "huber_scale": bent and recipe.huber_schedule != "snr",
        "snr_weights": recipe.zero_terminal_snr and any(getattr(recipe, key) for key in WEIGHTS),
    }


def base_misfits(recipe: RecipeTable, name: str, prediction_type: str) -> Iterator[Misfit]:
    """What does not go with the base `name`, which predicts "epsilon" or "v_prediction"."""
    predicts_v = prediction_type == "v_prediction"
    said = f'base {name} has prediction_type = "{prediction_type}"'
    if recipe.v_parameterization not in (None, predicts_v):
        yield Misfit("v_parameterization", f"{said} in lorabuild.toml, which decides: leave this out, or set it there")
    for key in ("zero_terminal_snr", "scale_v_pred_loss_like_noise_pred"):
        if getattr(recipe, key) and not predicts_v:
            yield Misfit(key, f'for v-prediction only; {said} ("v_prediction" is set in lorabuild.toml)')
    if recipe.v_pred_like_loss and predicts_v:
        yield Misfit("v_pred_like_loss", f"for epsilon-prediction only; {said}")


def mask_misfits(recipe: RecipeTable, dataset: DatasetTable | None) -> Iterator[Misfit]:
    """masked_loss says again what alpha_mask does; where the two differ, one of them is a mistake."""
    if recipe.masked_loss is None or dataset is None:
        return
    whole = getattr(dataset, "alpha_mask", False)
    folders = [getattr(subset, "alpha_mask", None) for subset in dataset.subset]
    folders += [whole] if dataset.train_data_dir else []
    masked = any(whole if own is None else own for own in folders)
    if recipe.masked_loss and not masked:
        yield Misfit("masked_loss", "there are no masks: set alpha_mask = true in [dataset] or [[dataset.subset]]")
    if masked and not recipe.masked_loss:
        yield Misfit("masked_loss", "dataset.alpha_mask = true masks the loss: leave this out, or that")
