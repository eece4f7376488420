"""Names of adapted layers: the very ones that kohya's trainer writes, whatever the libraries call their modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorabuild.lora.keymap import EXPECTED, adaptable_modules, lora_name, to_sgm
from lorabuild.names import BLOCKS, block_of

GOLDEN = Path(__file__).parent / "goldens/unet_keymap.tsv"  # from a run of kohya's trainer on the SGM U-Net


def rows() -> list[tuple[str, str, str]]:
    lines = GOLDEN.read_text().splitlines()[1:]
    return [tuple(line.split("\t")) for line in lines]


def clip_paths(layers: int) -> list[str]:
    parts = [*(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2", "layer_norm1"]
    return [f"encoder.layers.{layer}.{part}" for layer in range(layers) for part in parts]


def test_every_unet_layer_has_kohyas_name():
    table = rows()
    assert len(table) == 794
    assert [lora_name("unet", path) for _, path, _ in table] == [name for name, _, _ in table]


def test_the_adapted_layers_are_kohyas_788():
    table = rows()
    adapted = {name: path for name, path, kind in table if kind == "adapted"}
    assert len(adapted) == EXPECTED["unet"]
    assert adaptable_modules("unet", [path for _, path, _ in table]) == adapted


def test_layers_a_block_are_sdxls():
    counts = dict.fromkeys(BLOCKS, 0)
    for name, _, kind in rows():
        if kind == "adapted":
            counts[block_of(name)] += 1
    assert list(counts.values()) == [
        0,
        3,
        3,
        1,
        26,
        25,
        1,
        106,
        105,
        3,
        102,
        3,
        106,
        106,
        107,
        26,
        26,
        27,
        4,
        4,
        4,
        0,
        0,
    ]


def test_parameters_and_layers_without_adapter_have_sgm_names_too():
    assert to_sgm("down_blocks.1.resnets.0.norm1.weight") == "input_blocks.4.0.in_layers.0.weight"
    assert to_sgm("down_blocks.0.downsamplers.0.conv.bias") == "input_blocks.3.0.op.bias"
    assert to_sgm("up_blocks.1.upsamplers.0.conv.weight") == "output_blocks.5.2.conv.weight"
    assert to_sgm("mid_block.attentions.0.norm.weight") == "middle_block.1.norm.weight"
    assert to_sgm("conv_norm_out.weight") == "out.0.weight"
    assert to_sgm("conv_out.weight") == "out.2.weight"
    assert to_sgm("add_embedding.linear_2.bias") == "label_emb.0.2.bias"


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize(("component", "layers"), [("te1", 12), ("te2", 32)])
def test_text_encoders_have_kohyas_names_with_and_without_text_model(prefix: str, component: str, layers: int):
    paths = [prefix + path for path in clip_paths(layers)]
    found = adaptable_modules(component, paths)
    assert len(found) == EXPECTED[component]
    assert all(name.startswith(f"lora_{component}_text_model_encoder_layers_") for name in found)
    assert found[f"lora_{component}_text_model_encoder_layers_11_self_attn_out_proj"].endswith("11.self_attn.out_proj")


@pytest.mark.parametrize(
    "path", ["encoder.layers.0.mlp.fc1", "down_blocks.0.resnets.0.nonlinearity", "down_blocks", ""]
)
def test_a_path_that_sdxl_does_not_have_is_refused(path: str):
    with pytest.raises(ValueError, match="not a layer of SDXL's U-Net"):
        to_sgm(path)


def test_what_is_no_adaptable_text_layer_is_refused():
    with pytest.raises(ValueError, match="not an adaptable layer"):
        lora_name("te1", "final_layer_norm")


def test_names_need_no_torch():
    code = "import sys, lorabuild.lora.keymap; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
