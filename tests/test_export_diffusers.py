"""What is exported for diffusers does there what the file does: layer by layer, in a real pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_lab import deltas, layer, read, write_lora
from pipeline import (
    COMPONENTS,
    CONV,
    CROSS,
    SELF,
    TE1,
    TE2,
    Maker,
    differing,
    fused,
    of_parameters,
    toy_layers,
    toy_pipe,
    weights,
)

from lorabuild.errors import JobError
from lorabuild.exporting.peft import adapter_config, peft_file
from lorabuild.header import read_header
from lorabuild.lora.layers import read_layers
from lorabuild.lora.loaders import verdicts
from lorabuild.nn.factors import read_factors, scale_of
from lorabuild.verbs.common import write_loras

SHORTCUT = "lora_unet_output_blocks_8_0_skip_connection"
PROJ = "lora_unet_output_blocks_1_1_proj_in"
TEXT = tuple(f"{te}{part}" for te in (TE1, TE2) for part in ("self_attn_q_proj", "self_attn_out_proj", "mlp_fc1"))
OUTSIDE = ("lora_unet_time_embed_0", "lora_unet_label_emb_0_2", "lora_unet_input_blocks_0_0", "lora_unet_out_2")


@pytest.fixture
def pipe() -> Any:
    return toy_pipe()


@pytest.fixture
def layers() -> dict[str, tuple[str, str]]:
    return toy_layers()


def exported(path: Path) -> Path:
    """The file as diffusers is to have it."""
    out = path.with_name(f"{path.stem}-diffusers.safetensors")
    write_loras(peft_file(path, read_header(path), out, path.stem))
    return out


def of_file(path: Path, layers: Any) -> Any:
    return of_parameters(deltas(path), layers)


@pytest.mark.parametrize("name", ["ember", pytest.param("ember-resized", marks=pytest.mark.slow), "ember-chopped"])
def test_every_layer_of_an_artifact_does_the_same(built_once, pipe, layers, tmp_path, name):
    path = built_once.root / f"build/ember/{name}.safetensors"
    source = tmp_path / path.name
    source.write_bytes(path.read_bytes())
    out = exported(source)
    expected = of_file(source, layers)
    assert len(expected) == len(deltas(source)) > 100
    before = weights(pipe)
    assert differing(before, fused(pipe, out, before), expected) == set()


def test_alphas_and_ranks_that_vary_are_right(pipe, layers, tmp_path):
    """In kohya's form diffusers gets such alphas wrong without a word."""
    make = Maker(pipe, layers)
    tensors = make.lora(CROSS, CONV, SHORTCUT, PROJ, *TEXT, alpha=3.0)
    tensors |= make.lora(SELF, *OUTSIDE, rank=2, alpha=7.0) | make.lora(TEXT[1], TEXT[-1], rank=6, alpha=0.5)
    path = write_lora(tmp_path / "varied.safetensors", tensors)
    before = weights(pipe)
    assert differing(before, fused(pipe, exported(path), before), of_file(path, layers)) == set()


def test_the_weights_alone_say_enough(pipe, layers, tmp_path):
    """Scales are in the weights, so that a program that reads no metadata is right, too."""
    tensors = Maker(pipe, layers).lora(CROSS, CONV, *TEXT) | Maker(pipe, layers).lora(SELF, rank=2, alpha=7.0)
    path = write_lora(tmp_path / "varied.safetensors", tensors)
    out = exported(path)
    bare = write_lora(tmp_path / "bare.safetensors", read(out))
    before = weights(pipe)
    assert differing(before, fused(pipe, bare, before), of_file(path, layers)) == set()
    header = read_header(out)
    assert {one.loader: one.loads for one in verdicts(header.tensors, header.metadata)}["diffusers"] == "yes"


def dense(path: Path) -> dict[str, torch.Tensor]:
    """What each layer of a file of any kind adds [O, I·k]; the readers of kinds have tests of their own."""
    found, _ = read_layers(read_header(path).tensors)
    return {one.name: torch.from_numpy(read_factors(path, one).dense() * scale_of(path, one)) for one in found}


OTHER_KINDS = {
    "LoHa": {f"hada_{role}": shape for role, shape in {"w1_a": (64, 2), "w1_b": (2, 64), "w2_a": (64, 3), "w2_b": (3, 64)}.items()},
    "LoKr": {"lokr_w1": (4, 4), "lokr_w2_a": (16, 2), "lokr_w2_b": (2, 16)},
    "Tucker": {"lora_up.weight": (32, 4, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_down.weight": (4, 32, 1, 1)},
    "a linear layer as a convolution": {"lora_up.weight": (64, 4, 1, 1), "lora_down.weight": (4, 64, 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_become_pairs_of_their_own_rank(pipe, layers, tmp_path, kind):
    name = CONV if kind == "Tucker" else SELF
    component, place = layers[name]
    out, inside, *kernel = getattr(pipe, COMPONENTS[component]).get_submodule(place).weight.shape
    shapes = OTHER_KINDS[kind]
    if kind == "Tucker":
        shapes = {
            "lora_up.weight": (out, 4, 1, 1),
            "lora_mid.weight": (4, 4, *kernel),
            "lora_down.weight": (4, inside, 1, 1),
        }
    else:
        assert (out, inside) == (64, 64)
    torch.manual_seed(3)
    tensors = {f"{name}.{role}": 0.3 * torch.randn(shape) for role, shape in shapes.items()}
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    path = write_lora(tmp_path / "kind.safetensors", tensors | Maker(pipe, layers).lora(CROSS))
    before = weights(pipe)
    assert differing(before, fused(pipe, exported(path), before), of_parameters(dense(path), layers)) == set()


REFUSED = {
    "DoRA": ({f"{CROSS}.dora_scale": torch.ones(1, 96)}, "diffusers has no place for", "DoRA"),
    "norms": ({"lora_unet_input_blocks_4_1_norm.w_norm": torch.ones(48)}, "input_blocks_4_1_norm.w_norm", "norms"),
    "whole differences": ({f"{SELF}.diff": torch.ones(64, 64)}, SELF, "no product of low rank"),
    "what is unknown": ({"bundle_emb.ember.string_to_param": torch.ones(2)}, "bundle_emb", "of no kind known here"),
    "half a pair": ({f"{SELF}.lora_up.weight": torch.ones(64, 4)}, f"{SELF}.lora_up.weight", "no whole layer"),
    "another layer": (layer("lora_unet_output_blocks_8_0_x", 8, 2, 8), "lora_unet_output_blocks_8_0_x", "no such layer"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_diffusers_cannot_take_is_one_line(pipe, layers, tmp_path, what):
    tensors, *said = REFUSED[what]
    path = write_lora(tmp_path / "lora.safetensors", Maker(pipe, layers).lora(CROSS, CONV) | tensors)
    with pytest.raises(JobError) as error:
        exported(path)
    assert len(error.value.problems) == 1
    assert all(one in str(error.value) for one in (str(path), *said))
    assert not list(tmp_path.glob("*-diffusers*"))


def test_the_config_is_the_ranks():
    found = adapter_config({"unet.a": 4, "unet.b": 2, "unet.c": 4, "text_encoder.text_model.encoder.x": 3})
    assert found["unet.r"] == found["unet.lora_alpha"] == 4
    assert found["unet.rank_pattern"] == found["unet.alpha_pattern"] == {"b": 2}
    assert found["unet.target_modules"] == ["a", "b", "c"]
    assert found["text_encoder.target_modules"] == ["encoder.x"]  # by their ends, whether or not text_model is in front
    assert "text_encoder_2.r" not in found
    json.dumps(found)
