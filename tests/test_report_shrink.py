"""Shrink curves: at every point they are what a resize with that value would keep, and weigh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lora_lab import SPECTRUM, layer, resize_params, run, write_lora, write_norms

from lorabuild.header import byte_size, read_header
from lorabuild.lora.curves import curve, grid, key_of
from lorabuild.lora.ranks import choose, parse_recipe, resolve_recipe
from lorabuild.report.files import ProjectFiles, StageState
from lorabuild.report.shrink import BINS, _histogram, data
from lorabuild.stages.resize import STAGE as RESIZE
from lorabuild.stages.resize import read_spectrum

LAYERS = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": (24, 4, 16),
    "lora_unet_input_blocks_1_0_in_layers_2": (16, 6, 8, 3, 3),
    "lora_unet_output_blocks_1_0_skip_connection": (12, 5, 16, 1, 1),
    "lora_unet_output_blocks_1_1_proj_in": (32, 8, 32),
}
NORMS = dict(zip(LAYERS, (1.0, 3.0, 0.2, 8.0), strict=True))


@pytest.fixture(scope="module")
def spectrum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectrum")
    tensors = {}
    for seed, (name, (out, rank, *rest)) in enumerate(LAYERS.items()):
        tensors |= layer(name, out, rank, *rest, seed=seed)
    tensors |= {key: one * 0 for key, one in layer("lora_unet_output_blocks_2_1_proj_in", 8, 2, 8).items()}  # untrained
    weights = write_lora(folder / "trained.safetensors", tensors)
    norms = write_norms(folder / "norms.json", NORMS | {"lora_unet_output_blocks_2_1_proj_in": 1.0}, weights)
    return run(SPECTRUM, folder, {}, weights=weights, norms=norms).path("spectrum")


def project(root: Path, spectrum: Path, recipe: str, resized: Path | None = None) -> ProjectFiles:
    table = dict.fromkeys(["max_rank"]) | parse_recipe(recipe)
    settings = {"project": {}, "resize": table, "chop": None, "recipe": {"save_precision": "fp16"}}
    states = {"resize": StageState("resize", "resize:ember", "fresh")}
    return ProjectFiles("ember", root, settings, {}, {"spectrum": spectrum, "resized": resized}, states)


@pytest.mark.parametrize(
    "text",
    [
        "thr=-0.5",
        "fro_ckpt=1,spn_lora=0.5,params=-0.2,thr=-1",
        "fro_lora=1,thr=-0.4,max_rank=3,max_conv_rank=2,rescale=1.5",
        "spn_lora=1,size=1",
        "sv_ratio=2",
        "sv_fro=0.9,max_rank=3",
        "sv_cumulative=0.7",
        "fro_ckpt=1,max_rank=2",
    ],
)
def test_every_point_is_what_a_resize_of_that_value_keeps(spectrum: Path, text: str):
    recipe = resolve_recipe(parse_recipe(text))
    layers = read_spectrum(spectrum, "F16")[1].references
    values = grid(recipe, layers)
    assert values == sorted(set(values)) and 4 <= len(values) <= 220
    found = curve(recipe, layers, values)
    whole = sum(np.square(one.singular).sum() for one in layers.values())
    for point in {0, len(values) // 3, len(values) // 2, len(values) - 1}:
        wanted = {name: value for name, value in recipe.items() if name != "size"} | {found.key: values[point]}
        if found.key.startswith("max"):
            wanted[found.key] = int(values[point])
        chosen = choose(wanted, layers, lambda counts: 0)
        assert dict(zip(found.names, found.counts[:, point], strict=True)) == {
            name: len(chosen[name]) for name in found.names
        }
        kept = sum(np.square(layers[name].singular[ranks]).sum() for name, ranks in chosen.items())
        assert found.lost[point] == pytest.approx(np.sqrt(max(1 - kept / whole, 0)), abs=1e-6)


@pytest.mark.parametrize("text", ["thr=-0.4", "sv_fro=0.8", "max_rank=2"])
def test_the_size_at_the_recipes_value_is_that_of_the_file(spectrum: Path, tmp_path: Path, text: str):
    body = run(RESIZE, tmp_path, resize_params(text), spectrum=spectrum).path("weights")
    found = data(project(tmp_path, spectrum, text, body))["curves"][0]
    here = found["values"].index(found["now"])
    assert found["sizes"][here] == pytest.approx(body.stat().st_size, abs=48)  # a body has no metadata, not even {}
    bytes_of = sum(byte_size(one.dtype, one.shape) for one in read_header(body).tensors.values())
    assert bytes_of < found["sizes"][here]
    assert sum(found["after"][here]) == sum(found["before"]) == found["all_layers"] == 5
    assert found["key"] == key_of(resolve_recipe(parse_recipe(text)))


def test_of_a_size_the_threshold_that_gives_it_is_marked(spectrum: Path, tmp_path: Path):
    body = run(RESIZE, tmp_path, resize_params("thr=-0.4"), spectrum=spectrum).path("weights")
    found = data(project(tmp_path, spectrum, "size=1", body))["curves"][0]
    here = found["values"].index(found["now"])
    assert (found["key"], found["sizes"][here]) == ("thr", pytest.approx(body.stat().st_size, abs=48))
    assert -0.4 <= found["now"] < 0
    assert any("takes the place of size" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thr=-1", None),
        ("fro_ckpt=1,spn_lora=1,thr=-1", "0.5 × fro_ckpt + 0.5 × spn_lora"),
        ("sv_ratio=2", "no thr to show"),
        ("thr=-1,max_rank=2", "max_rank = 2 holds at every point"),
        ("thr=-1,rescale=2", "rescale = 2 is not part of the error"),
        ("max_rank=2", "over its cap"),
    ],
)
def test_it_says_what_is_not_plain(spectrum: Path, tmp_path: Path, text: str, words: str | None):
    notes = " ".join(data(project(tmp_path, spectrum, text))["curves"][0]["notes"])
    assert words in notes if words else not notes


def test_without_a_spectrum_there_is_no_curve(tmp_path: Path):
    assert data(ProjectFiles("ember", tmp_path, {"resize": None}, {}, {}, {})) is None


def test_the_histogram_has_a_place_for_every_rank():
    assert _histogram([0, 1, 2, 3, 4, 5, 8, 9, 128, 129, 4096]) == [1, 1, 1, 2, 2, 1, 0, 0, 1, 2]
    assert len(BINS) == 10
