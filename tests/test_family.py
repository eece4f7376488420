"""What is no LoRA for SDXL is refused in one line; whatever spelling a LoRA for SDXL has, it is taken."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from lorabuild import cli
from lorabuild.header import TensorInfo, byte_size
from lorabuild.lora.family import EXPECTED, misfit
from lorabuild.lora.sdxl_names import NAMINGS, known_modules
from lorabuild.writing import write_body

BLOCK = "lora_unet_output_blocks_1_1_proj_in"
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = (".lora_A.weight", ".lora_B.weight")

NO_LORA = {
    "an SDXL checkpoint": (
        "model.diffusion_model.input_blocks.4.1.proj_in.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "first_stage_model.decoder.conv_in.weight",
    ),
    "a U-Net of diffusers": ("conv_in.weight", "down_blocks.1.attentions.0.proj_in.weight", "time_embedding.linear_1.bias"),
    "a VAE": ("encoder.conv_in.weight", "decoder.mid.attn_1.norm.bias"),
    "an embedding": ("clip_g", "clip_l"),
    "a control LoRA": ("input_blocks.4.1.proj_in.up", "input_blocks.4.1.proj_in.down", "lora_controlnet"),
    "anything": ("a", "b.c"),
}  # fmt: skip

# Family -> a module as trainers name it, how its tensors end, and what the line says it is for.
OTHERS = {
    "Wan": ("diffusion_model.blocks.0.self_attn.q", KOHYA, "another model"),
    "Wan by musubi": ("lora_unet_blocks_0_self_attn_q", KOHYA, "another model"),
    "Z-Image": ("diffusion_model.layers.0.attention.to_q", PEFT, "another model"),
    "Qwen": ("transformer_blocks.0.attn.to_q", PEFT, "another model"),
    "Hunyuan": ("transformer.single_transformer_blocks.0.attn.to_q", PEFT, "Flux"),
    "Flux": ("lora_unet_double_blocks_0_img_attn_qkv", KOHYA, "Flux"),
    "SD3": ("lora_unet_joint_blocks_0_x_block_attn_qkv", KOHYA, "SD3"),
    "SD 1.5": ("lora_unet_down_blocks_0_attentions_0_proj_in", KOHYA, "SD 1.5 or 2"),
    "SD 1.5 by SGM's names": ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", KOHYA, "SD 1.5 or 2"),
    "SD 1.5's text encoder": ("lora_te_text_model_encoder_layers_0_mlp_fc1", KOHYA, "SD 1.5 or 2"),
    "Stable Cascade": ("lora_prior_unet_down_blocks_0_0_mapper", KOHYA, "another model"),
}


def tensors(*keys: str) -> dict[str, TensorInfo]:
    return {key: TensorInfo("F32", (2, 2), 0, 0) for key in keys}


def pair(module: str, ends: Iterable[str] = KOHYA) -> tuple[str, ...]:
    return tuple(module + end for end in ends)


def saved(path: Path, keys: Iterable[str]) -> Path:
    write_body(path, [(key, "F32", (2, 2), bytes(byte_size("F32", (2, 2)))) for key in keys])
    return path


def refused(folder: Path, keys: Iterable[str], capsys: pytest.CaptureFixture) -> set[str]:
    """The line with which all verbs refuse such a file, without its name."""
    path, out = saved(folder / "in.safetensors", keys), folder / "out.safetensors"
    good = saved(folder / "good.safetensors", pair(BLOCK))
    lines = set()
    for args in (
        ["chop", path, "--keep", "TE", "-o", out],
        ["resize", path, "--base", good, "-o", out],
        ["merge", path, good, "-o", out],
        ["merge", good, f"{path}:0.5", "-o", out],
        ["blocks", path],
    ):
        assert cli._main([str(one) for one in args]) == 1
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert said.out == "" and line.startswith(f"{path}: ") and not out.exists()
        lines.add(line.removeprefix(f"{path}: "))
    return lines


@pytest.mark.parametrize("what", NO_LORA)
def test_what_is_no_lora_is_one_line_of_every_verb(tmp_path: Path, what: str, capsys: pytest.CaptureFixture):
    first = sorted(NO_LORA[what])[0]  # files are written in name order
    said = f"not a LoRA: it has no LoRA layer, but {first!r}; {EXPECTED}"
    assert refused(tmp_path, NO_LORA[what], capsys) == {said}


@pytest.mark.parametrize("family", OTHERS)
def test_a_lora_for_another_model_is_refused_by_its_first_layer(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture
):
    module, ends, model = OTHERS[family]
    (said,) = refused(tmp_path, (*pair(module, ends), "stray"), capsys)
    assert said.startswith(f"a LoRA for {model}") and "not for SDXL" in said
    assert "SD 1.5" in model or (f"it has '{module}." in said and said.endswith(EXPECTED))


@pytest.mark.parametrize("family", ["Wan", "Wan by musubi", "Z-Image", "Hunyuan", "Flux", "SD3", "SD 1.5"])
def test_a_text_encoder_that_families_share_does_not_make_it_sdxls(family: str):
    module, ends, model = OTHERS[family]
    said = misfit(tensors(*pair(TEXT), *pair(module, ends)), {})
    assert said and said.startswith(f"a LoRA for {model}")


@pytest.mark.parametrize(("width", "model"), [(768, "SD 1.5"), (1024, "SD 2"), (1280, "SDXL's refiner"), (2048, None)])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_names_that_families_share_are_told_apart_by_the_width_of_the_text(prefix: str, width: int, model: str | None):
    """As ComfyUI saves what it extracts from SD 1.5."""
    path = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    module = prefix + (path if prefix.endswith(".") else path.replace(".", "_"))
    found = tensors(*pair(module)) | {f"{module}.lora_down.weight": TensorInfo("F32", (2, width), 0, 0)}
    assert misfit(found, {}) == (model and f"a LoRA for {model}, not for SDXL")


@pytest.mark.parametrize("naming", [name for name in NAMINGS if name != "kohya, one text encoder"])
def test_every_spelling_of_sdxl_is_taken(naming: str):
    for ends in (KOHYA, PEFT, (".hada_w1_a",), (".diff",), (".w_norm",), (".oft_blocks",)):
        for module in sorted(known_modules((naming,))):
            if "text_projection" not in module or module.startswith("lora_te2"):
                assert misfit(tensors(*pair(module, ends)), {}) is None, (module, ends)


def test_what_is_unknown_beside_a_layer_of_sdxl_is_passed():
    strange = (*pair("lora_unet_strange"), *pair("transformer.blocks.0"), "emb", *pair("lora_unet_time_embed_0"))
    assert misfit(tensors(*pair(BLOCK), *strange), {}) is None
    assert misfit(tensors(*pair(TEXT), "emb", *pair("strange")), {}) is None
    assert misfit(tensors(f"{BLOCK}.of_a_kind_to_come", "emb"), {}) is None
    assert misfit(tensors(*pair(BLOCK), *pair("lora_te_text_model_encoder_layers_0_mlp_fc1")), {}) is None
    assert misfit({}, {}) is None, "an empty LoRA is one"


@pytest.mark.parametrize(
    "other",
    [
        "lora_unet_up_blocks_0_attentions_1_proj_in.lora_up.weight",
        "unet.up_blocks.0.attentions.1.proj_in.lora_B.weight",
        f"{BLOCK}.lora_B.weight",
        f"{BLOCK}.lora.up.weight",
    ],
)
def test_two_spellings_of_one_layer_are_refused_with_both_names(
    tmp_path: Path, other: str, capsys: pytest.CaptureFixture
):
    (said,) = refused(tmp_path, (*pair(BLOCK), other), capsys)
    assert f"{BLOCK}.lora_up.weight" in said and other in said and "which of them counts?" in said
