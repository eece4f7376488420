"""An adapter laid out without numbers is the one that is made; on SDXL's own widths it has the peer's counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sdxl_base import SDXL, sparse
from sdxl_base import sdxl as tensors_of
from sgm_base import FILES
from test_algos import KINDS
from tiny_base import tiny_base

from lorabuild.errors import JobError
from lorabuild.lora.adapter_shape import Shape
from lorabuild.nn.adapter import adapted
from lorabuild.nn.dry import dry
from lorabuild.nn.export import write_adapter

GUIDE: dict[str, Any] = {
    "network_dim": 8, "network_alpha": 4.0, "unet_lr": 3e-4, "text_encoder_lr": 1e-4, "save_precision": "fp16", "seed": 7,
    "network_args": {"algo": "locon", "preset": "full", "conv_dim": 256, "conv_alpha": 4.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL as a diffusers folder, its weights without numbers."""
    folder = tmp_path_factory.mktemp("sdxl")
    for component in ("unet", "te1", "te2"):
        sparse(folder / FILES[component], tensors_of(component))
        (folder / FILES[component]).with_name("config.json").write_text(json.dumps(SDXL[component]))
    return folder


def test_the_guides_recipe_on_sdxl(sdxl: Path):
    found = dry(GUIDE, sdxl)
    assert found.modules == {"unet": 788, "te": 264}
    assert found.parameters == 112_842_240 + 7_225_344
    assert 240e6 < found.bytes < 242e6


@pytest.mark.parametrize(
    ("preset", "modules", "millions"),
    [("full-lin", 750, 21.7), ("attn-mlp", 722, 21.3), ("unet-convblock-only", 66, 91.6), ("unet-only", 788, 112.8)],
)
def test_presets_on_sdxl(sdxl: Path, preset: str, modules: int, millions: float):
    args = {**GUIDE["network_args"], "preset": preset}
    found = dry({**GUIDE, "text_encoder_lr": 0, "network_args": args}, sdxl)
    assert found.modules == {"unet": modules, "te": 0}
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_counts_what_is_made(tmp_path: Path, kind: str):
    algo, options = KINDS[kind]
    args = {"algo": algo, "preset": "unet-convblock-only", "train_norm": True, **options}
    recipe = {**GUIDE, "network_dim": 16 if algo == "boft" else 4, "text_encoder_lr": 0, "network_args": args}
    found = dry(recipe, None)
    with adapted(tiny_base(), Shape.of(recipe), 7, ("unet",)) as adapter:
        assert found.modules == adapter.counts()
        assert found.parameters == sum(p.numel() for p in adapter.parameters().values())
        write_adapter(tmp_path / "body", adapter, 4.0, "fp16")
    assert found.bytes == (tmp_path / "body").stat().st_size


def test_what_cannot_be_taken_apart_is_told(sdxl: Path):
    recipe = {**GUIDE, "network_dim": 10, "network_args": {"algo": "boft", "preset": "full"}}
    with pytest.raises(
        JobError, match=r"lora_te2_\S+: boft cannot take its 224 outputs apart.*its rank must be 14 or more"
    ):
        dry(recipe, None)
    assert dry(recipe, sdxl).modules == {"unet": 788, "te": 264}
