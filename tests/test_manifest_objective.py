"""Settings of the objective: what enters a key, what goes with a base, what the published file says of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from manifest_world import Files

from lorabuild.manifest import load
from lorabuild.manifest.keys import result_keys
from lorabuild.manifest.tables.objective import mask_misfits
from lorabuild.metadata import metadata
from lorabuild.stages.train import STAGE

V_BASE = "[bases.v]\nbuiltin = 'tiny-sdxl'\nprediction_type = 'v_prediction'\n"
ON_V = "[project]\nbase = 'v'\n[[dataset.subset]]\nimage_dir = 'images'\n[recipe]\n"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.write("lorabuild.toml", V_BASE)
    return files


def recipe_key(files: Files, lines: str, head: str = "[recipe]\n") -> dict[str, Any]:
    return result_keys(files.settings(head + lines), "recipe")


def header(recipe: dict[str, Any], prediction_type: str = "epsilon") -> dict[str, str]:
    params = {"recipe": {"train_batch_size": 1, **recipe}, "base": {"prediction_type": prediction_type}}
    made_by = {"train": {"params": params, "inputs": {}, "version": 1}}
    about = {
        "name": "ember",
        "project_name": "ember",
        "project": {"base": "v"},
        "made_by": made_by,
        "trained": "weights",
    }
    return metadata(about, "0" * 64, None, None)


def test_defaults_are_in_no_key(files: Files):
    assert recipe_key(files, "noise_offset = 0\nloss_type = 'l2'\nmax_timestep = 1000\n") == recipe_key(files, "")
    assert load(files.root).bases["v"] == {"builtin": "tiny-sdxl", "prediction_type": "v_prediction"}
    files.write("lorabuild.toml", "[bases.v]\nbuiltin = 'tiny-sdxl'\nprediction_type = 'epsilon'\n")
    assert load(files.root).bases["v"] == {"builtin": "tiny-sdxl"}


@pytest.mark.parametrize(
    "idle",
    [
        "huber_c = 0.5\nhuber_schedule = 'constant'\nhuber_scale = 2\n",
        "noise_offset_random_strength = true\n",
        "ip_noise_gamma_random_strength = true\n",
        "pyramid_std = 'sample'\nmultires_noise_discount = 0.8\n",
        "snr_weights = 'peer'\nmin_snr_gamma = 0\n",
        "v_parameterization = false\nmasked_loss = false\n",
    ],
)
def test_what_has_no_effect_is_no_other_training(files: Files, idle: str):
    assert recipe_key(files, idle) == recipe_key(files, "")


def test_the_scale_of_huber_has_no_effect_on_the_schedule_by_snr(files: Files):
    assert "huber_scale" not in recipe_key(files, "loss_type = 'huber'\nhuber_scale = 2\n")
    assert recipe_key(files, "loss_type = 'huber'\nhuber_schedule = 'constant'\nhuber_scale = 2\n")["huber_scale"] == 2


def test_what_has_an_effect_is_in_the_key(files: Files):
    lines = "zero_terminal_snr = true\nmin_snr_gamma = 5\nsnr_weights = 'peer'\nloss_type = 'huber'\nhuber_c = 0.2\n"
    found = recipe_key(files, f"{lines}v_parameterization = true\n", ON_V)
    expected = {
        "zero_terminal_snr": True,
        "min_snr_gamma": 5,
        "snr_weights": "peer",
        "loss_type": "huber",
        "huber_c": 0.2,
    }
    assert found == recipe_key(files, "", ON_V) | expected


def test_a_training_depends_on_what_its_base_predicts(files: Files):
    files.project(ON_V)
    (job,) = STAGE.jobs(load(files.root))
    assert job.params["base"] == {"prediction_type": "v_prediction"}


def test_what_a_v_base_does_not_go_with_is_told(files: Files):
    files.write("projects/ember/lora.toml", ON_V + "v_parameterization = false\nv_pred_like_loss = 0.1\n")
    said = 'base v has prediction_type = "v_prediction"'
    assert [str(one).partition("lora.toml:")[2] for one in files.mistakes()] == [
        f"6: recipe.v_parameterization: {said} in lorabuild.toml, which decides: leave this out, or set it there",
        f"7: recipe.v_pred_like_loss: for epsilon-prediction only; {said}",
    ]


@pytest.mark.parametrize(
    ("said", "whole", "folders", "words"),
    [
        (None, True, [None], None),
        (True, True, [None], None),
        (True, False, [None, True], None),
        (True, True, [False], "there are no masks"),
        (True, False, [None], "there are no masks"),
        (False, False, [None], None),
        (False, True, [None], "masks the loss"),
    ],
)
def test_masked_loss_agrees_with_alpha_mask(said: bool | None, whole: bool, folders: list, words: str | None):
    subset = [SimpleNamespace(alpha_mask=own) for own in folders]
    dataset = SimpleNamespace(alpha_mask=whole, subset=subset, train_data_dir=None)
    found = [str(misfit) for misfit in mask_misfits(SimpleNamespace(masked_loss=said), dataset)]
    assert (words in found[0]) if words else not found


def test_a_lora_that_is_not_trained_has_no_objective(files: Files):
    files.write("a.safetensors", b"")
    files.settings("[project]\nbase = 'tiny'\nsource = '../../a.safetensors'\n[recipe]\nzero_terminal_snr = true\n")


def test_the_file_says_how_it_was_trained_in_kohyas_names():
    recipe = {
        "noise_offset": 0.05,
        "noise_offset_random_strength": True,
        "adaptive_noise_scale": 0.01,
        "multires_noise_iterations": 6,
        "multires_noise_discount": 0.3,
        "ip_noise_gamma": 0.1,
        "ip_noise_gamma_random_strength": True,
        "zero_terminal_snr": True,
        "min_snr_gamma": 5.0,
        "loss_type": "smooth_l1",
    }
    found = header(recipe | {"debiased_estimation_loss": True, "huber_schedule": "constant"}, "v_prediction")
    expected = {f"ss_{key}": str(value) for key, value in recipe.items()}
    expected |= {"ss_debiased_estimation": "True", "ss_huber_schedule": "constant"}
    expected |= {"ss_huber_c": "0.1", "ss_huber_scale": "1.0", "modelspec.prediction_type": "v"}
    assert {key: found.get(key) for key in expected} == expected
    assert not {"ss_huber_c", "ss_loss_type", "ss_noise_offset", "ss_zero_terminal_snr"} & set(header({}))
    assert header({})["modelspec.prediction_type"] == "epsilon"
