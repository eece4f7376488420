"""An adapter laid out without making it is the one that is made: on SDXL's own widths, and on the tiny base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sdxl_shapes import UNET
from test_algos import KINDS
from tiny_base import tiny_base, tiny_folder

from lorabuild.errors import JobError
from lorabuild.lora.adapter_shape import Shape
from lorabuild.lora.basefile import base_weights
from lorabuild.lora.dry import dry
from lorabuild.lora.keymap import adaptable_modules, lora_name
from lorabuild.lora.sdxl_widths import Widths, has_bias, norm_width, weight_shapes
from lorabuild.nn.adapter import adapted
from lorabuild.nn.export import write_adapter
from lorabuild.nn.tiny import LEVELS, TE1, TE2

GUIDE = {
    "network_dim": 8, "network_alpha": 4.0, "unet_lr": 3e-4, "text_encoder_lr": 1e-4, "save_precision": "fp16",
    "network_args": {"algo": "locon", "preset": "full", "conv_dim": 256, "conv_alpha": 4.0},
}  # fmt: skip


def test_the_guides_recipe_on_sdxl():
    found = dry(GUIDE)
    assert found.counts == {"unet": 788, "te": 264}
    assert found.parameters == {"unet": 112_842_240, "te": 7_225_344}
    assert 240e6 < found.file_bytes < 242e6


@pytest.mark.parametrize(
    ("preset", "modules", "millions"),
    [("full-lin", 750, 21.7), ("attn-mlp", 722, 21.3), ("unet-convblock-only", 66, 91.6), ("attn-only", 560, None)],
)
def test_presets_on_sdxl(preset: str, modules: int, millions: float | None):
    args = {**GUIDE["network_args"], "preset": preset}
    found = dry({**GUIDE, "network_args": args})
    assert found.counts["unet"] == modules
    assert millions is None or found.parameters["unet"] / 1e6 == pytest.approx(millions, abs=0.1)


def test_shapes_are_those_of_diffusers_sdxl():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    modules, shapes = dict(unet.named_modules()), weight_shapes()
    names = adaptable_modules("unet", modules)
    assert {name: tuple(modules[path].weight.shape) for name, path in names.items()} == {
        name: shape for name, shape in shapes.items() if name.startswith("lora_unet_")
    }
    assert all((modules[path].bias is not None) == has_bias(name) for name, path in names.items())
    for path, module in modules.items():
        if "norm" in path.rpartition(".")[2] and path != "conv_norm_out":
            assert norm_width(lora_name("unet", path), shapes) == len(module.weight), path


def test_shapes_are_those_of_the_tiny_base():
    shapes = weight_shapes(Widths(LEVELS, TE1, TE2))
    theirs = {name: weight.shape for name, weight in base_weights(tiny_folder()).items() if name in shapes}
    assert theirs == shapes


@pytest.mark.parametrize("kind", KINDS)
def test_it_counts_what_is_made(tmp_path: Path, kind: str):
    algo, options = KINDS[kind]
    dim = 16 if algo == "boft" else 4
    args: dict[str, Any] = {"algo": algo, "preset": "unet-convblock-only", "train_norm": True, **options}
    recipe = {**GUIDE, "network_dim": dim, "network_args": args}
    found = dry(recipe, weight_shapes(Widths(LEVELS, TE1, TE2)))
    with adapted(tiny_base(), Shape.of(recipe), 7, ("unet",)) as adapter:
        assert found.counts == adapter.counts()
        assert found.parameters["unet"] == sum(p.numel() for p in adapter.parameters().values())
        write_adapter(tmp_path / "body", adapter, 4.0, "fp16")
    assert found.file_bytes == pytest.approx((tmp_path / "body").stat().st_size, rel=0.1)


def test_what_cannot_be_taken_apart_is_told():
    args = {"algo": "boft", "preset": "full"}
    with pytest.raises(
        JobError, match=r"lora_te2_\S+: boft cannot take its 224 outputs apart.*its rank must be 14 or more"
    ):
        dry({**GUIDE, "network_dim": 10, "network_args": args}, weight_shapes(Widths(LEVELS, TE1, TE2)))
    assert dry({**GUIDE, "network_dim": 10, "network_args": args}).counts == {"unet": 788, "te": 264}
