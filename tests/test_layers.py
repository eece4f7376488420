"""Layers of a LoRA file are found by whatever names it has; what is no layer is told apart, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lora_lab import ADAPTERS, CONV, LINEAR, POINT, adapter, base_modules, flat

from lorabuild.errors import JobError
from lorabuild.header import TensorInfo
from lorabuild.lora.canonical import block_of_module, canonical
from lorabuild.lora.layers import ROLES, Layer, module_of, read_layers, split_key, weight_shape
from lorabuild.lora.lowrank import LowRank
from lorabuild.lora.match import matched
from lorabuild.lora.sdxl_names import text_layers, unet_layers

UNET = [layer for layer in unet_layers() if layer.kind != "norm"]
TEXT = [(encoder, path) for encoder in (1, 2) for path in text_layers(encoder)]


def without_zero(path: str) -> str:
    return path.removesuffix(".0") if path.endswith("to_out.0") else path


def processor(path: str) -> str:
    """diffusers' path as its first LoRA files had it in an attention."""
    return without_zero(path).replace(".to_", ".processor.to_")


# How the world calls a module of the U-Net, by its path in SGM's checkpoint or in diffusers.
UNET_SPELLINGS: dict[str, Callable] = {
    "kohya": lambda sgm, diffusers: f"lora_unet_{flat(sgm)}",
    "kohya with diffusers' blocks": lambda sgm, diffusers: f"lora_unet_{flat(diffusers)}",
    "diffusers and PEFT": lambda sgm, diffusers: f"unet.{diffusers}",
    "PEFT's own": lambda sgm, diffusers: f"base_model.model.{diffusers}",
    "PEFT's own with unet": lambda sgm, diffusers: f"base_model.model.unet.{diffusers}",
    "diffusers, bare": lambda sgm, diffusers: diffusers,
    "SGM, bare": lambda sgm, diffusers: sgm,
    "SGM, bare, flat": lambda sgm, diffusers: flat(sgm),
    "diffusers, bare, flat": lambda sgm, diffusers: flat(diffusers),
    "SGM": lambda sgm, diffusers: f"diffusion_model.{sgm}",
    "SGM's checkpoint": lambda sgm, diffusers: f"model.diffusion_model.{sgm}",
    "LyCORIS": lambda sgm, diffusers: f"lycoris_{flat(diffusers)}",
    "LyCORIS with SGM's blocks": lambda sgm, diffusers: f"lycoris_{flat(sgm)}",
    "diffusers' first files": lambda sgm, diffusers: f"unet.{processor(diffusers)}",
    "diffusers' first files, bare": lambda sgm, diffusers: processor(diffusers),
}
TEXT_SPELLINGS: dict[str, Callable] = {
    "kohya": lambda number, path: f"lora_te{number}_{flat(path)}",
    "diffusers": lambda number, path: f"{('text_encoder', 'text_encoder_2')[number - 1]}.{path}",
    "PEFT's own": lambda number, path: f"base_model.model.{('text_encoder', 'text_encoder_2')[number - 1]}.{path}",
    "without text_model": lambda number, path: f"{('text_encoder', 'text_encoder_2')[number - 1]}.{path[11:]}",
    "ComfyUI": lambda number, path: f"text_encoders.clip_{'lg'[number - 1]}.transformer.{path}",
    "ComfyUI's checkpoint": lambda number, path: f"clip_{'lg'[number - 1]}.transformer.{path}",
}


@pytest.mark.parametrize("spelling", UNET_SPELLINGS)
def test_every_module_of_the_unet_in_every_spelling(spelling: str):
    names = {UNET_SPELLINGS[spelling](layer.sgm, layer.diffusers): f"lora_unet_{flat(layer.sgm)}" for layer in UNET}
    assert len(names) == 794
    assert {name: canonical(name) for name in names} == names


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_every_module_of_the_text_encoders_in_every_spelling(spelling: str):
    names = {TEXT_SPELLINGS[spelling](number, path): f"lora_te{number}_{flat(path)}" for number, path in TEXT}
    assert len(names) == 72 + 192
    assert {name: canonical(name) for name in names} == names


@pytest.mark.parametrize(
    "name",
    ["lora_te2_text_projection", "text_encoder_2.text_projection", "base_model.model.text_encoder_2.text_projection"],
)
def test_the_text_projection_of_the_second_text_encoder(name: str):
    assert canonical(name) == "lora_te2_text_projection"


@pytest.mark.parametrize(
    "name",
    [
        "lora_te1_text_projection",  # the first has none
        "lora_te_text_model_encoder_layers_0_mlp_fc1",  # SD 1.5
        "lora_te1_text_model_encoder_layers_0_mlp_fc3",
        "text_encoder.text_model.embeddings.token_embedding",
        "text_encoder_2",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "transformer.single_transformer_blocks.0.attn.to_q",
        "lora_unet_down_blocks_0_resnets_0_nonlinearity",
        "lora_unet_",
        "unet.",
        "unet",
        "alpha",
        "",
    ],
)
def test_what_is_no_module_of_sdxl(name: str):
    assert canonical(name) is None
    assert block_of_module(name) in (None, "TE1")  # a kohya name of any layer of it is in its block


@given(st.text())
def test_any_text_is_a_name_or_none(name: str):
    found = canonical(name)
    assert found is None or canonical(found) == found


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("unet.mid_block.resnets.0.conv1", "MID00"),
        ("lycoris_up_blocks_0_upsamplers_0_conv", "OUT02"),
        ("input_blocks_4_1_proj_in", "INP04"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "TE2"),
        ("unet.time_embedding.linear_1", None),
        ("unet.conv_in", "INP00"),
    ],
)
def test_the_block_of_a_module_by_any_name(name: str, block: str | None):
    assert block_of_module(name) == block


@pytest.mark.parametrize(
    ("key", "module", "role"),
    [
        ("lora_te1_x.lora_up.weight", "lora_te1_x", "up"),
        ("lora_te1_x.lora_down.weight", "lora_te1_x", "down"),
        ("lora_unet_x.lora_mid.weight", "lora_unet_x", "mid"),
        ("lora_te1_x.alpha", "lora_te1_x", "alpha"),
        ("unet.a.b.to_out.0.lora_A.weight", "unet.a.b.to_out.0", "down"),
        ("unet.a.b.to_out.0.lora_B.weight", "unet.a.b.to_out.0", "up"),
        ("unet.a.lora_B.default.weight", "unet.a", "up"),
        ("unet.a.lora_magnitude_vector", "unet.a", "dora_scale"),
        ("unet.a.lora_magnitude_vector.default.weight", "unet.a", "dora_scale"),
        ("unet.a.to_q.lora.down.weight", "unet.a.to_q", "down"),
        ("unet.a.attn1.processor.to_out_lora.down.weight", "unet.a.attn1.processor.to_out", "down"),
        ("text_encoder.a.q_proj.lora_linear_layer.up.weight", "text_encoder.a.q_proj", "up"),
        ("lycoris_x.hada_w1_a", "lycoris_x", "hada_w1_a"),
        ("lora_x.lokr_w2", "lora_x", "lokr_w2"),
        ("lora_x.lokr_w2_b", "lora_x", "lokr_w2_b"),
        ("lora_x.diff", "lora_x", "diff"),
        ("lora_x.diff_b", "lora_x", "diff_b"),
        ("lora_x.w_norm", "lora_x", "w_norm"),
    ],
)
def test_a_tensors_name_is_a_module_and_a_role(key: str, module: str, role: str):
    assert split_key(key) == (module, role)
    assert module_of(key) == module


@pytest.mark.parametrize(
    "key",
    [
        "alpha",
        ".alpha",
        "_lora.up.weight",
        "lora_x.steps",
        "x.weight",
        "x.lora_up",
        "x.lora_up.weight.y",
        "weight",
        "",
        ".",
    ],
)
def test_what_ends_in_no_known_way_has_no_role(key: str):
    assert split_key(key) is None
    assert module_of(key) == key.partition(".")[0]


def infos(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo("F16", shape, 0, 0) for name, shape in shapes.items()}


def of_kind(kind: str, name: str, alpha: float | None = 2.0) -> dict[str, TensorInfo]:
    return infos({key: tuple(one.shape) for key, one in adapter(kind, name, alpha)[0].items()})


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("alpha", [2.0, None])
def test_a_layer_of_every_flavour(kind: str, alpha: float | None):
    tensors = of_kind(kind, CONV, alpha)
    beside = infos({f"{CONV}.dora_scale": (24, 1, 1, 1), f"{CONV}.diff_b": (24,), "lora_unet_out_0.w_norm": (8,)})
    (layer,), rest = read_layers(tensors | beside)
    assert (layer.name, layer.flavour, layer.canonical) == (CONV, kind.partition(" ")[0], CONV)
    assert set(layer.keys.values()) == tensors.keys()
    assert {role: tensors[key] for role, key in layer.keys.items()} == layer.infos
    assert ("alpha" in layer.keys) == (alpha is not None)
    assert rest == beside


# A pair of names for up and down -> what the names of the resized file end in, alpha too where such a file has one.
PAIRS = {
    (".lora_up.weight", ".lora_down.weight"): ".alpha",
    (".lora_B.weight", ".lora_A.weight"): None,
    (".lora_B.default.weight", ".lora_A.default.weight"): None,
    (".lora.up.weight", ".lora.down.weight"): None,
    ("_lora.up.weight", "_lora.down.weight"): None,
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"): None,
}


@pytest.mark.parametrize(("pair", "alpha"), PAIRS.items())
@pytest.mark.parametrize("name", ["lora_te1_x", "unet.down_blocks.1.attentions.0.proj_in"])
def test_a_low_rank_layer_keeps_its_names(pair: tuple[str, str], alpha: str | None, name: str):
    tensors = infos({name + pair[0]: (8, 2, 1, 1), name + pair[1]: (2, 4, 1, 1)})
    (layer,), rest = read_layers(tensors)
    assert not rest
    assert LowRank.of(layer, (8, 4)) == LowRank(name, name + pair[0], name + pair[1], alpha and name + alpha, (8, 4))


@pytest.mark.parametrize("kind", [kind for kind in ADAPTERS if not kind.startswith("lora")])
def test_another_flavour_gets_kohyas_names(kind: str):
    (layer,), _ = read_layers(of_kind(kind, LINEAR))
    names = (f"{LINEAR}.lora_up.weight", f"{LINEAR}.lora_down.weight", f"{LINEAR}.alpha")
    assert LowRank.of(layer, (8, 4)) == LowRank(LINEAR, *names, (8, 4))


def test_layers_are_in_name_order_and_do_not_mix():
    tensors = of_kind("lora", LINEAR) | of_kind("lokr", CONV) | of_kind("loha", POINT)
    layers, rest = read_layers(dict(reversed(tensors.items())))
    assert [layer.name for layer in layers] == sorted((LINEAR, CONV, POINT))
    assert [layer.flavour for layer in layers] == ["lora", "lokr", "loha"]
    assert not rest


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_layer_that_lacks_a_part_is_none(kind: str):
    """All of it stays as it is: what it would add, nobody can say."""
    tensors = of_kind(kind, CONV)
    optional = ("alpha", "lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2")
    for missing in [key for key in tensors if not key.endswith(optional)]:
        left = {key: info for key, info in tensors.items() if key != missing}
        assert read_layers(left) == ([], left)


@given(
    st.lists(st.tuples(st.sampled_from([CONV, "unet.x", "x"]), st.sampled_from([*ROLES, ".steps", ".y.weight", ""])))
)
@example([(CONV, ".lora_up.weight"), (CONV, ".lora_B.weight"), (CONV, ".lora_A.weight")])
def test_nothing_is_lost(names: list[tuple[str, str]]):
    """Every tensor is in exactly one layer, or among the rest."""
    tensors = infos(dict.fromkeys((name + suffix for name, suffix in names), (1, 1)))
    layers, rest = read_layers(tensors)
    keys = [key for layer in layers for key in layer.keys.values()] + list(rest)
    assert sorted(keys) == sorted(tensors)
    assert all(layer.infos[role] is tensors[key] for layer in layers for role, key in layer.keys.items())
    assert len({layer.name for layer in layers}) == len(layers)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_shape_of_the_weight_is_that_of_what_lycoris_adds(kind: str):
    shape, _ = ADAPTERS[kind]
    (layer,), _ = read_layers(of_kind(kind, CONV))
    delta = adapter(kind, CONV)[1]
    found = weight_shape(layer)
    assert (found[0], *found[1:]) in (shape, tuple(delta.shape)), "flat where it is stored flat"
    assert matched([layer], {CONV: shape, LINEAR: (9, 9)}) == ({layer: shape}, [])


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_up.weight": (8, 4), "lora_down.weight": (3, 8)},
        {"lora_up.weight": (8,), "lora_down.weight": (8, 8)},
        {"lora_up.weight": (8, 4), "lora_down.weight": ()},
        {"lora_up.weight": (8, 4, 3, 3), "lora_down.weight": (4, 8, 3, 3)},
        {"lora_up.weight": (8, 4), "lora_down.weight": (4, 8), "lora_mid.weight": (4, 4)},
        {"lora_up.weight": (8, 4), "lora_down.weight": (4, 8), "lora_mid.weight": (4, 3, 3, 3)},
        {"lora_up.weight": (8, 4), "lora_down.weight": (4, 8, 3, 3), "lora_mid.weight": (4, 4, 3, 3)},
        {"hada_w1_a": (8, 4), "hada_w1_b": (4, 8), "hada_w2_a": (8, 4), "hada_w2_b": (4, 7)},
        {"hada_w1_a": (8, 4), "hada_w1_b": (3, 8), "hada_w2_a": (8, 4), "hada_w2_b": (4, 8)},
        {"hada_w1_a": (4, 8), "hada_w1_b": (4, 8), "hada_w2_a": (4, 8), "hada_w2_b": (4, 8), "hada_t1": (4, 4, 3, 3)},
        {"lokr_w1": (), "lokr_w2": (4, 4)},
        {"lokr_w1": (4, 4), "lokr_w2": ()},
        {"lokr_w1": (4,), "lokr_w2": (4, 4)},
        {"lokr_w1": (4, 4, 3, 3), "lokr_w2": (4, 4)},
        {"lokr_w1": (4, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 4)},
        {"lokr_w1": (4, 4), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 4), "lokr_t2": ()},
        {"lokr_w1": (4, 4), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 4), "lokr_t2": (2, 3, 3, 3)},
        {"lora_up.weight": (8, 0), "lora_down.weight": (0, 8)},
        {"lora_up.weight": (0, 4), "lora_down.weight": (4, 8)},
        {"diff": (8, 0)},
    ],
)
def test_tensors_that_do_not_fit_are_an_error_that_names_the_layer(shapes: dict[str, tuple[int, ...]]):
    (layer,), _ = read_layers(infos({f"{CONV}.{role}": shape for role, shape in shapes.items()}))
    with pytest.raises(JobError, match=rf"{CONV}: (its tensors do not fit together|has an empty tensor): ") as error:
        weight_shape(layer)
    assert "\n" not in str(error.value)


def lora(name: str, out: int = 8, *rest: int) -> Layer:
    up, down = (out, 2, *[1] * (len(rest) - 1)), (2, *(rest or (4,)))
    return read_layers(infos({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}))[0][0]


def test_layers_find_their_weights_by_any_name():
    layers = [lora("unet.time_embedding.linear_1"), lora("lora_unet_strange"), lora(LINEAR)]
    shapes = {"lora_unet_time_embed_0": [8, 4], LINEAR: [8, 4], CONV: [8, 4, 3, 3]}
    assert matched(layers, shapes) == ({layers[0]: (8, 4), layers[2]: (8, 4)}, [layers[1]])


@pytest.mark.parametrize(
    ("own", "base", "shape"),
    [
        ((8, 4), (8, 4), (8, 4)),
        ((8, 36), (8, 4, 3, 3), (8, 4, 3, 3)),  # flat
        ((8, 4, 1, 1), (8, 4), (8, 4, 1, 1)),  # proj_in is a convolution for some trainers
        ((8, 4), (8, 4, 1, 1), (8, 4, 1, 1)),
        ((8, 4, 3, 3), (8, 4, 3, 3), (8, 4, 3, 3)),
    ],
)
def test_a_layer_that_is_stored_flat_has_the_shape_of_the_base(own: tuple, base: tuple, shape: tuple):
    layer = lora(CONV, *own)
    assert matched([layer], {CONV: base})[0] == {layer: shape}


@pytest.mark.parametrize("base", [(9, 4), (8, 5), (8, 4, 3, 3), (4, 8)])
def test_a_shape_that_is_not_the_bases_is_an_error(base: tuple):
    with pytest.raises(JobError) as error:
        matched([lora(LINEAR), lora(CONV)], {LINEAR: base, CONV: (8, 5)})
    assert str(error.value) == (
        f"not a LoRA for this base: {LINEAR} changes a weight [8, 4], the base's is {list(base)} (and 1 more layers)"
    )


def test_a_lora_that_shares_no_layer_with_the_base_is_an_error():
    with pytest.raises(JobError) as error:
        matched([lora(f"lora_unet_double_blocks_{n}_x") for n in range(3)], {LINEAR: (8, 4)})
    names = ", ".join(f"lora_unet_double_blocks_{n}_x" for n in range(3))
    assert str(error.value) == f"not a LoRA for this base: it has none of the 3 layers ({names})"
    assert matched([], {LINEAR: (8, 4)}) == ({}, [])


def test_the_names_of_a_base_are_their_own():
    assert all(canonical(name) == name for name in base_modules())


def test_names_and_layers_need_no_tensor_library():
    code = "import sys, lorabuild.lora.match, lorabuild.lora.lowrank; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
