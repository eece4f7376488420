"""What each loader takes and refuses, rule by rule, on headers made by hand."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lorabuild.header import TensorInfo, read_header
from lorabuild.lora.loaders import LOADERS, Verdict, verdicts
from lorabuild.lora.modules import KINDS, read_alphas
from lorabuild.lora.sdxl_names import NAMINGS, known_modules, text_layers, unet_layers
from lorabuild.writing import write_body

GOLDEN = Path(__file__).parent / "goldens/unet_keymap.tsv"  # from a run of kohya's trainer on the SGM U-Net

ALL = ("ComfyUI", "Forge", "diffusers", "InvokeAI")
SDXL = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}

CROSS = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn2_to_k"
SELF = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_q"
SHALLOW = "lora_unet_output_blocks_4_1_transformer_blocks_1_attn1_to_q"  # of a level with two blocks a transformer
DEEP = "lora_unet_output_blocks_1_1_transformer_blocks_2_attn1_to_q"
CONV = "lora_unet_output_blocks_8_0_in_layers_2"
SAME_CONV = "lora_unet_up_blocks_2_resnets_2_conv1"
NORM = "lora_unet_input_blocks_4_1_norm"
TE1 = "lora_te1_text_model_encoder_layers_0_"
TE2 = "lora_te2_text_model_encoder_layers_0_"
PROJECTION = "lora_te2_text_projection"

PATHS = {  # diffusers' own
    SELF: "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
    CONV: "up_blocks.2.resnets.2.conv1",
}


def tensor(*shape: int) -> TensorInfo:
    return TensorInfo("F16", shape, 0, 0)


def lora(name: str, width: int = 640, rank: int = 4, alpha: bool = True) -> dict[str, TensorInfo]:
    pair = {f"{name}.lora_down.weight": tensor(rank, width), f"{name}.lora_up.weight": tensor(640, rank)}
    return {**pair, f"{name}.alpha": tensor()} if alpha else pair


def peft(path: str, width: int = 640) -> dict[str, TensorInfo]:
    return {f"{path}.lora_A.weight": tensor(4, width), f"{path}.lora_B.weight": tensor(640, 4)}


def files(*parts: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {key: one for part in parts for key, one in part.items()}


def lora_of(*names: str) -> dict[str, TensorInfo]:
    return files(*map(lora, names))


def strange(count: int) -> dict[str, TensorInfo]:
    return {f"lora_unet_input_blocks_1_0_strange_{n}.alpha": tensor() for n in range(count)}


def without(tensors: Mapping[str, TensorInfo], *keys: str) -> dict[str, TensorInfo]:
    assert set(keys) <= set(tensors)
    return {key: one for key, one in tensors.items() if key not in keys}


# A file that every loader takes: each case below changes it in one way.
GOOD = files(
    lora(CROSS, 2048),
    lora_of(SELF, CONV),
    lora(TE1 + "self_attn_out_proj", 768),
    lora(TE2 + "self_attn_out_proj", 1280),
    lora(TE2 + "mlp_fc1", 1280),
)
DORA = {f"{SELF}.dora_scale": tensor(1, 640)}
LOHA = {f"{SELF}.hada_{part}": tensor(4, 640) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
LOKR = {f"{SELF}.lokr_w1": tensor(8, 8), f"{SELF}.lokr_w2": tensor(80, 80), f"{SELF}.alpha": tensor()}


@dataclass(frozen=True)
class Case:
    """`loads`: the loaders that do not simply say yes, and the word that their reason must have."""

    name: str
    tensors: Mapping[str, TensorInfo]
    loads: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=lambda: SDXL)
    alphas: Mapping[str, float] | None = field(default_factory=dict)


def everywhere(loads: str, word: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(ALL, (loads, word))


COMFYS = ("ComfyUI", "Forge")

NAMES = [
    Case("SGM names", GOOD),
    Case("nothing", {}, everywhere("no", "no tensors")),
    Case(
        "diffusers names of blocks",
        files(
            lora("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 2048),
            lora_of("lora_unet_down_blocks_2_resnets_0_conv_shortcut", "lora_unet_mid_block_attentions_0_proj_in"),
            lora_of("lora_unet_up_blocks_1_upsamplers_0_conv", "lora_unet_down_blocks_0_downsamplers_0_conv"),
        ),
    ),
    Case(
        "both names of blocks",
        files(GOOD, lora(SAME_CONV)),
        {"diffusers": ("partly", "mixed"), "InvokeAI": ("no", "only some")},
    ),
    Case("layers in no block", files(GOOD, lora_of("lora_unet_time_embed_2", "lora_unet_label_emb_0_0"))),
    Case("first and last", files(GOOD, lora_of("lora_unet_input_blocks_0_0", "lora_unet_out_2"))),
    Case(
        "lycoris_",
        files(lora("lycoris_mid_block_attentions_0_proj_in")),
        {"Forge": ("no", "none"), "diffusers": ("no", '"lora" in it'), "InvokeAI": ("no", "begins with")},
    ),
    Case(
        "PEFT, attention",
        peft("unet." + PATHS[SELF]),
        {**dict.fromkeys(COMFYS, ("no", "none")), "InvokeAI": ("no", "begins with")},
    ),
    Case("PEFT, convolution", peft("unet." + PATHS[CONV]), {"InvokeAI": ("no", "begins with")}),
    Case(
        "PEFT with its old names of attention",
        peft("unet.up_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_out"),
        {"InvokeAI": ("no", "begins with")},
    ),
    Case(
        "PEFT without a prefix",
        peft(PATHS[CONV]),
        {"diffusers": ("no", "none"), "InvokeAI": ("no", "begins with")},
    ),
    Case(
        "PEFT's own prefix",
        peft("base_model.model." + PATHS[CONV]),
        {**dict.fromkeys((*COMFYS, "diffusers"), ("no", "none")), "InvokeAI": ("no", "begins with")},
    ),
    Case(
        "PEFT of text",
        files(
            peft("text_encoder.text_model.encoder.layers.0.self_attn.q_proj"),
            peft("text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ),
        {"InvokeAI": ("no", "begins with")},
    ),
    Case(
        "PEFT of text without attention",
        files(peft("unet." + PATHS[CONV]), peft("text_encoder_2.text_model.encoder.layers.0.mlp.fc1")),
        {"diffusers": ("no", "no attention"), "InvokeAI": ("no", "begins with")},
    ),
    Case(
        "PEFT with an alpha",
        {**peft("unet." + PATHS[CONV]), f"unet.{PATHS[CONV]}.alpha": tensor()},
        {"diffusers": ("no", '"lora" in it'), "InvokeAI": ("no", "begins with")},
    ),
    Case(  # diffusers says nothing, and leaves the half that is missing at what the memory held
        "PEFT, a half",
        files(peft("unet." + PATHS[CONV]), {f"unet.{PATHS[SELF]}.lora_A.weight": tensor(4, 640)}),
        {
            **dict.fromkeys(COMFYS, ("partly", "1 of 3")),
            "diffusers": ("no", "lacks one"),
            "InvokeAI": ("no", "begins with"),
        },
    ),
    Case(
        "old diffusers",
        {
            f"unet.{PATHS[SELF].replace('.to_q', '.processor.to_q')}_lora.{part}.weight": tensor(4, 640)
            for part in ("up", "down")
        },
        {"InvokeAI": ("no", "begins with")},
    ),
    Case(
        "SGM paths",
        peft("diffusion_model.output_blocks.8.0.in_layers.2"),
        {"diffusers": ("no", "none"), "InvokeAI": ("no", "begins with")},
    ),
    Case(
        "one key without a known prefix",
        files(GOOD, {"bundle_emb.ember.string_to_param": tensor(8)}),
        {
            **dict.fromkeys((*COMFYS, "InvokeAI"), ("partly", "ignored: bundle_emb")),
            "diffusers": ("no", '"lora" in it'),
        },
    ),
    Case(
        "one module with another prefix",
        files(GOOD, lora("lora_prior_unet_x")),
        {
            **dict.fromkeys(COMFYS, ("partly", "ignored: lora_prior_unet_x")),
            "diffusers": ("no", "ignores kohya"),
            "InvokeAI": ("no", "begins with"),
        },
    ),
    Case(
        "an unnumbered text encoder beside SDXL's U-Net",
        files(GOOD, lora_of("lora_te_text_model_encoder_layers_1_mlp_fc1")),
        {"InvokeAI": ("no", "begins with")},
    ),
    Case("projection of text", files(GOOD, lora(PROJECTION))),
    Case(
        "projection of the first text",
        files(GOOD, lora("lora_te1_text_projection")),
        dict.fromkeys(("diffusers", "InvokeAI"), ("partly", "ignored: lora_te1_text_projection")),
    ),
    Case("12 keys too many", files(GOOD, strange(12)), everywhere("no", "strange_0") | dict.fromkeys(COMFYS, ("partly", "12 of"))),
    Case(
        "13 keys too many",
        files(GOOD, strange(13)),
        everywhere("no", "strange_0") | {"ComfyUI": ("partly", "13 of"), "Forge": ("no", "skips the whole LoRA")},
    ),
    Case("a layer that SDXL has not", files(GOOD, lora("lora_unet_output_blocks_8_0_to_x")), everywhere("partly", "3 of 21")),
    Case(
        "only layers that SDXL has not",
        lora("lora_unet_output_blocks_8_0_to_x"),
        everywhere("no", "none") | {"diffusers": ("no", "no layer of unet"), "InvokeAI": ("no", "recognise")},
    ),
]  # fmt: skip

ADAPTERS = [
    Case("Tucker", {**GOOD, f"{CONV}.lora_mid.weight": tensor(4, 4, 3, 3)}, {"diffusers": ("no", "lora_mid")}),
    Case("DoRA", {**GOOD, **DORA}, {"diffusers": ("partly", "dora_scale, so that the result is wrong")}),
    Case(
        "DoRA without LoRA",
        files(DORA),
        {"diffusers": ("no", "drops dora_scale"), "InvokeAI": ("no", "no kind")},
    ),
    Case(
        "DoRA of LoHa",
        {**files(without(GOOD, *lora(SELF)), LOHA), **DORA},
        {"diffusers": ("no", "hada"), "InvokeAI": ("no", "DoRA only of LoRA")},
    ),
    Case("LoHa", files(without(GOOD, *lora(SELF)), LOHA), {"diffusers": ("no", "ValueError")}),
    Case("LoKr", files(without(GOOD, *lora(SELF)), LOKR), {"diffusers": ("no", "ValueError")}),
    Case(
        "GLoRA",
        files(GOOD, {f"{DEEP}.{part}.weight": tensor(4, 4) for part in ("a1", "a2", "b1", "b2")}),
        dict.fromkeys(("diffusers", "InvokeAI"), ("no", "ValueError")),
    ),
    Case(
        "IA3",
        files(GOOD, {f"{DEEP}.weight": tensor(640), f"{DEEP}.on_input": tensor()}),
        {**dict.fromkeys(COMFYS, ("partly", "2 of")), "diffusers": ("no", "ValueError")},
    ),
    Case(
        "norms",
        {**GOOD, f"{NORM}.w_norm": tensor(640), f"{NORM}.b_norm": tensor(640)},
        {"diffusers": ("no", "w_norm")},
    ),
    Case(
        "differences",
        files(GOOD, {f"{DEEP}.diff": tensor(640, 640), f"{DEEP}.diff_b": tensor(640)}),
        {"diffusers": ("no", "diff")},
    ),
    Case(
        "a difference of a bias alone",
        {**GOOD, f"{DEEP}.diff_b": tensor(640)},
        {"diffusers": ("no", "diff_b"), "InvokeAI": ("no", "no kind")},
    ),
    Case(
        "a replaced weight",
        {**GOOD, f"{DEEP}.set_weight": tensor(640)},
        {"Forge": ("partly", "1 of"), "diffusers": ("no", "set_weight"), "InvokeAI": ("no", "no kind")},
    ),
    Case(
        "an alpha without its weights",
        {**GOOD, f"{DEEP}.alpha": tensor()},
        {"diffusers": ("no", "without its weights"), "InvokeAI": ("no", "no kind")},
    ),
    Case("an up without its down", without(GOOD, f"{SELF}.lora_down.weight"), everywhere("no", "lacks one")),
    Case(
        "a down without its up",
        without(GOOD, f"{SELF}.lora_up.weight"),
        {**dict.fromkeys(COMFYS, ("partly", "1 of")), "diffusers": ("no", "lacks one"), "InvokeAI": ("no", "no kind")},
    ),
]

DIFFUSERS = [
    Case(
        "adapter metadata", GOOD, {"diffusers": ("no", "lora_adapter_metadata")}, SDXL | {"lora_adapter_metadata": "{}"}
    ),
    Case(
        "adapter metadata without alphas",
        files(lora(CROSS, 2048, alpha=False)),
        metadata=SDXL | {"lora_adapter_metadata": "{}"},
    ),
    Case(
        "text of query and out_proj",
        files(GOOD, lora(TE1 + "self_attn_q_proj", 768)),
    ),
    Case(
        "text of query alone",
        files(without(GOOD, *lora(TE1 + "self_attn_out_proj")), lora(TE1 + "self_attn_q_proj", 768)),
        {"diffusers": ("no", "neither out_proj nor mlp")},
    ),
    Case(
        "text of query and mlp",
        files(without(GOOD, *lora(TE2 + "self_attn_out_proj")), lora(TE2 + "self_attn_q_proj", 1280)),
        {"diffusers": ("partly", "attention of text_encoder_2")},
    ),
    Case(
        "text projection alone", files(lora(CROSS, 2048), lora(PROJECTION)), {"diffusers": ("no", "neither out_proj")}
    ),
    Case("text projection of another rank", files(GOOD, lora(PROJECTION, rank=8)), {"diffusers": ("no", "has rank 8")}),
    Case("one alpha", GOOD, alphas=dict.fromkeys((CROSS, SELF, CONV), 2.0)),
    Case("no alpha", {key: one for key, one in GOOD.items() if not key.endswith(".alpha")}, alphas={}),
    Case("alpha varies by component", GOOD, alphas={CROSS: 2.0, SELF: 2.0, CONV: 2.0, TE2 + "mlp_fc1": 1.0}),
    Case("alpha of a convolution varies", GOOD, alphas={CROSS: 2.0, SELF: 2.0, CONV: 1.0}),
    Case(
        "alpha of attention varies",
        GOOD,
        {"diffusers": ("partly", "alpha varies, and 1 of 3 modules of unet")},
        alphas={CROSS: 2.0, SELF: 1.0, CONV: 2.0},
    ),
    Case(
        "alpha of the first text encoder varies",
        files(GOOD, lora_of(TE1 + "mlp_fc1", TE1 + "mlp_fc2")),
        {"diffusers": ("partly", "1 of 3 modules of text_encoder get the most common one, 2")},
        alphas={TE1 + "mlp_fc1": 1.0, TE1 + "mlp_fc2": 2.0, TE1 + "self_attn_out_proj": 2.0},
    ),
    Case(
        "alpha of the second text encoder's mlp varies",
        files(GOOD, lora_of(TE2 + "mlp_fc2")),
        alphas={TE2 + "mlp_fc1": 1.0, TE2 + "mlp_fc2": 2.0, TE2 + "self_attn_out_proj": 2.0},
    ),
    Case(
        "some modules have no alpha",
        without(GOOD, f"{CONV}.alpha"),
        {"diffusers": ("partly", "1 of 3 modules of unet")},
        alphas={CROSS: 2.0, SELF: 2.0},
    ),
    Case(
        "some modules have no alpha, and no value could be read",
        without(GOOD, f"{CONV}.alpha"),
        {"diffusers": ("partly", "get that of others in unet")},
    ),
    Case("an alpha that is the rank is not missed", without(GOOD, f"{CONV}.alpha"), alphas={CROSS: 4.0, SELF: 4.0}),
    Case(
        "some modules have no alpha, and the values are unknown",
        without(GOOD, f"{CONV}.alpha"),
        {"diffusers": ("partly", "get that of others in unet")},
        alphas=None,
    ),
]

BASES = [
    Case("cross-attention", lora(CROSS, 2048)),
    Case("cross-attention of a toy", lora(CROSS, 96), {"InvokeAI": ("no", "does not recognise SDXL")}),
    Case("both text encoders", files(lora(TE1 + "self_attn_out_proj", 768), lora(TE2 + "self_attn_out_proj", 1280))),
    Case("one text encoder", lora(TE2 + "self_attn_out_proj", 1280), {"InvokeAI": ("no", "recognise")}),
    Case("text encoders without attention", files(lora(TE1 + "mlp_fc1", 768), lora(TE2 + "mlp_fc1", 1280)), {"InvokeAI": ("no", "recognise")}),
    Case("self-attention of the third block", lora(DEEP)),
    Case("self-attention of a level of two blocks", lora(SHALLOW), {"InvokeAI": ("no", "recognise")}),
    Case("no attention", lora(CONV), {"InvokeAI": ("no", "recognise")}),
    Case("time embedding by diffusers' name", lora("lora_unet_up_blocks_2_resnets_2_time_emb_proj", 1280)),
    Case("time embedding by SGM's name", lora("lora_unet_output_blocks_8_0_emb_layers_1", 1280), {"InvokeAI": ("no", "recognise")}),
    Case("cross-attention by LoHa", {**{key.replace(SELF, CROSS): one for key, one in LOHA.items()}, f"{CROSS}.hada_w1_b": tensor(4, 2048)}, {"diffusers": ("no", "ValueError")}),
    Case("cross-attention by LoKr", {f"{CROSS}.lokr_w1": tensor(8, 32), f"{CROSS}.lokr_w2": tensor(8, 64)}, {"diffusers": ("no", "ValueError")}),
]  # fmt: skip

SD = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_"
OTHERS = [
    ("SD 1.5", lora(SD + "attn2_to_k", 768)),
    ("SD 2", lora(SD + "attn2_to_v", 1024)),
    ("SDXL's refiner", lora(SD + "attn2_to_v", 1280)),
    ("SD 1.5 or 2", lora("lora_te_text_model_encoder_layers_0_mlp_fc1", 768)),
    ("SD 1.5 or 2", lora("lora_unet_down_blocks_0_attentions_0_proj_in")),
    ("SD 1.5 or 2", lora("lora_unet_up_blocks_3_resnets_0_conv1")),
    ("SD 1.5 or 2", lora("lora_unet_input_blocks_11_0_in_layers_2")),
    ("SD 1.5 or 2", lora("lora_unet_output_blocks_8_1_proj_in")),
    ("SD 1.5 or 2", peft("unet.down_blocks.0.attentions.1.proj_in")),
    ("Flux", lora("lora_unet_double_blocks_0_img_attn_qkv")),
    ("Flux", lora("lora_unet_single_blocks_9_linear1")),
    ("Flux", peft("transformer.single_transformer_blocks.0.attn.to_q")),
    ("Flux", peft("diffusion_model.double_blocks.0.img_attn.qkv")),
    ("SD3", lora("lora_unet_joint_blocks_0_x_block_attn_qkv")),
    ("another transformer", peft("transformer.transformer_blocks.0.attn.to_q")),
]


def judged(case: Case) -> dict[str, Verdict]:
    return {verdict.loader: verdict for verdict in verdicts(case.tensors, case.metadata, case.alphas)}


@pytest.mark.parametrize("case", NAMES + ADAPTERS + DIFFUSERS + BASES, ids=lambda case: case.name)
def test_each_rule(case: Case):
    for name, verdict in judged(case).items():
        loads, word = case.loads.get(name, ("yes", ""))
        assert (verdict.loads, name) == (loads, name), verdict
        assert word in verdict.reason, verdict
        assert bool(verdict.reason) == (loads != "yes") and "\n" not in verdict.reason
        assert set(verdict.unmatched) <= set(case.tensors)
        assert not (loads == "yes" and verdict.unmatched)


@pytest.mark.parametrize(("model", "tensors"), OTHERS, ids=lambda one: one if isinstance(one, str) else next(iter(one)))
def test_a_lora_for_another_model_is_named(model: str, tensors: dict[str, TensorInfo]):
    for verdict in verdicts(tensors, SDXL):
        assert verdict.loads == "no" and "a LoRA for " in verdict.reason and model in verdict.reason


@pytest.mark.parametrize("naming", [name for name in NAMINGS if name.startswith("kohya, ") and "one" not in name])
def test_no_layer_of_sdxl_is_taken_for_another_models(naming: str):
    reasons = {verdict.reason for verdict in verdicts(lora_of(*known_modules((naming,))), SDXL)}
    assert not any("a LoRA for" in reason for reason in reasons)


def test_unmatched_are_the_keys_that_a_loader_leaves():
    left = {case.name: {name: one.unmatched for name, one in judged(case).items()} for case in NAMES + ADAPTERS}
    assert left["both names of blocks"]["diffusers"] == tuple(key for key in GOOD if "output_blocks" in key)
    assert left["both names of blocks"]["InvokeAI"] == tuple(lora(SAME_CONV))
    assert left["one key without a known prefix"]["ComfyUI"] == ("bundle_emb.ember.string_to_param",)
    assert len(left["13 keys too many"]["Forge"]) == 13
    assert left["DoRA"]["diffusers"] == tuple(DORA)
    assert left["DoRA"]["ComfyUI"] == ()
    assert left["an alpha without its weights"]["InvokeAI"] == (f"{DEEP}.alpha",)


@pytest.mark.parametrize(
    ("metadata", "hidden"),
    [
        (SDXL, False),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, False),
        ({"ss_base_model_version": "sd_v1"}, True),
        ({}, True),
    ],
)
def test_metadata_without_sdxl_is_a_note_of_forge(metadata: dict[str, str], hidden: bool):
    forge = judged(Case("", GOOD, metadata=metadata))["Forge"]
    assert (forge.loads, forge.reason) == ("yes", "")
    assert ("XL" in forge.note) == hidden


def test_alphas_that_nobody_read_are_a_note_of_diffusers():
    assert "alpha" in judged(Case("", GOOD, alphas=None))["diffusers"].note
    assert judged(Case("", GOOD, alphas={}))["diffusers"].note == ""


def test_alphas_are_read_in_every_dtype(tmp_path: Path):
    values: list[tuple[str, str, Any]] = [("F16", "<e", 1.5), ("F32", "<f", 2.5), ("F64", "<d", 3.5), ("I64", "<q", 4)]
    tensors = [(f"{dtype}.alpha", dtype, (), struct.pack(code, value)) for dtype, code, value in values]
    tensors.append(("BF16.alpha", "BF16", (1,), struct.pack("<f", 0.5)[2:]))
    tensors.append(("odd.alpha", "F16", (2,), b"\0\0\0\0"))
    tensors.append(("F16.lora_up.weight", "F16", (1,), b"\0\0"))
    write_body(tmp_path / "file", tensors)
    found = read_alphas(tmp_path / "file", read_header(tmp_path / "file").tensors)
    assert found == {"F16": 1.5, "F32": 2.5, "F64": 3.5, "I64": 4.0, "BF16": 0.5}


def test_the_layers_are_those_of_kohyas_trainer():
    golden = [line.split("\t") for line in GOLDEN.read_text().splitlines()[1:]]
    layers = {"lora_unet_" + layer.sgm.replace(".", "_"): layer for layer in unet_layers() if layer.kind != "norm"}
    assert {name: (layer.diffusers, layer.kind == "block") for name, layer in layers.items()} == {
        name: (path, kind == "adapted") for name, path, kind in golden
    }
    assert Counter(layer.kind for layer in unet_layers())["block"] == 788
    assert [len(text_layers(encoder)) for encoder in (1, 2)] == [72, 192]
    assert len(known_modules(("kohya, text",))) == 264


def test_loaders_name_namings_and_kinds_that_exist():
    assert [loader.name for loader in LOADERS] == list(ALL)
    for loader in LOADERS:
        assert set(loader.namings) <= set(NAMINGS) and set(loader.kinds) <= set(KINDS)


def test_a_verdict_needs_no_heavy_library():
    code = (
        "import sys, lorabuild.lora.loaders; print({'torch', 'numpy', 'safetensors', 'diffusers'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
