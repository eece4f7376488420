"""Files of every algorithm: readable by others, with the effect that was trained; and training goes on from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.modules import get_module, make_module
from safetensors.torch import load_file
from test_algos import KINDS
from tiny_base import tiny_base, tiny_folder
from torch import Tensor

from lorabuild.cli import _main
from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.lora.layers import read_layers
from lorabuild.lora.presets import COUNTS, PRESETS, preset_layers, preset_norms
from lorabuild.nn.adapter import Adapter, Shape, adapted
from lorabuild.nn.adapters.module import Module
from lorabuild.nn.adapters.start import layers_of_file
from lorabuild.nn.adapters.weights import change_of_outputs
from lorabuild.nn.export import write_adapter
from lorabuild.nn.factors import read_factors, scale_of

LOW_RANK = [kind for kind, (algo, _) in KINDS.items() if algo in ("locon", "dylora", "loha", "lokr", "full")]
# one transformer and one convolution's worth of layers
BLOCKS = {f"{p}block_dims": {b: 0 for b in ("INP01", "INP02", "INP03", "INP05", "INP07", "INP08", "MID00", "MID01", "MID02",
          "OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05")} for p in ("", "conv_")}  # fmt: skip
LAYERS = (
    "lora_unet_input_blocks_4_1_proj_in",
    "lora_unet_input_blocks_4_0_in_layers_2",
    "lora_unet_input_blocks_6_0_op",
)


def shape_of(kind: str, preset: str = "unet-only", **more: Any) -> Shape:
    algo, options = KINDS[kind]
    dim = 16 if algo == "boft" else 4
    return Shape(dim, 2.0, dim, 1.0, algo, preset, {**BLOCKS, **options, **more})


@torch.no_grad()
def moved(adapter: Adapter) -> None:
    """As if it had been trained: every tensor has changed."""
    for number, (name, tensor) in enumerate(adapter.parameters().items()):
        step = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        tensor += step * (0.3 if "scale" not in name else 0.03)


def effect(module: Module) -> Tensor:
    """dW of a layer, whatever makes it; for DoRA that of the product alone."""
    if module.algo in ("diag-oft", "boft", "ia3"):
        turned = change_of_outputs(module.algo, module.tensors, module.weight.flatten(1).t(), module.constraint)
        return turned.t().view(module.weight.shape)
    return module.change()


def written(tmp_path: Path, adapter: Adapter, precision: str = "fp32") -> Path:
    path = tmp_path / "body.safetensors"
    write_adapter(path, adapter, 2.0, precision)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_the_effect_that_was_trained(tmp_path: Path, kind: str):
    with adapted(tiny_base(), shape_of(kind, train_norm=True), 7, ("unet",)) as adapter:
        moved(adapter)
        adapter.limit_norms(0.5)  # whatever it scales must be in the file
        path = written(tmp_path, adapter)
        tensors = load_file(path)
        layers = {layer.name: layer for layer in read_layers(read_header(path).tensors)[0]}
        for name in LAYERS:
            module = adapter.modules[name]
            with torch.no_grad():
                exact = effect(module)
            if kind in LOW_RANK:
                read = read_factors(path, layers[name]).dense() * scale_of(path, layers[name])
                theirs = torch.tensor(read).float().view(exact.shape)
            elif module.algo == "ia3":
                theirs = module.weight * tensors[f"{name}.weight"].reshape(-1, *[1] * (exact.dim() - 1))
            else:
                loaded = make_module(*get_module(tensors, name), name, module.layer)
                theirs = loaded.get_diff_weight(device="cpu")[0]
            assert (theirs - exact).norm() / exact.norm() < 1e-4
            if "DoRA" in kind:
                assert torch.equal(tensors[f"{name}.dora_scale"], module.tensors["dora_scale"].detach())
        norm = adapter.modules["lora_unet_input_blocks_4_1_norm"]
        assert torch.equal(tensors[f"{norm.name}.w_norm"], norm.tensors["w_norm"].detach())
        alphas = {tensor.item() for name, tensor in tensors.items() if name.endswith(".alpha")}
        assert len(alphas) <= 1, "one alpha for the file"


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_file(tmp_path: Path, kind: str):
    """The same prediction, whatever ranks the recipe has; the layers and ranks are the file's."""
    noise, hidden = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 96)
    conditions = {"text_embeds": torch.randn(1, 56), "time_ids": torch.zeros(1, 6)}
    base, shape = tiny_base(), shape_of(kind, train_norm=True)

    @torch.no_grad()
    def predict() -> Tensor:
        return base.unet(noise, torch.tensor([5]), hidden, added_cond_kwargs=conditions).sample

    with adapted(base, shape, 7, ("unet",)) as adapter:
        moved(adapter)
        adapter.limit_norms(0.5)
        expected, names = predict(), set(adapter.modules)
        tensors = load_file(written(tmp_path, adapter))
    other = Shape(8, 1.0, 8, 1.0, shape.algo, "full", {**KINDS[kind][1]})
    with adapted(base, other, 9, ("unet", "te"), init=tensors) as adapter:
        assert set(adapter.modules) == names and adapter.parts == ("unet",)
        torch.testing.assert_close(predict(), expected, rtol=1e-4, atol=1e-4)
        if kind in ("locon", "loha"):
            assert {one.dim for one in layers_of_file(tensors).values()} == {4, 1}  # 1: norms have no rank


@pytest.mark.parametrize(
    "kind", ["locon", "dylora", "loha", "lokr", "full", "ia3", "diag-oft", "boft", "glora", "locon, DoRA"]
)
def test_our_own_verbs_take_the_file(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    with adapted(tiny_base(), shape_of(kind, train_norm=True), 7, ("unet",)) as adapter:
        moved(adapter)
        path = written(tmp_path, adapter, "fp16")
    assert _main(["show", str(path)]) == 0 and _main(["blocks", str(path)]) == 0
    chopped, resized = tmp_path / "chopped.safetensors", tmp_path / "resized.safetensors"
    assert _main(["chop", str(path), "--keep", "INP04", "-o", str(chopped)]) == 0
    assert {name.split("_")[4] for name in load_file(chopped)} == {"4"}
    recipe = ["--base", str(tiny_folder()), "-r", "fro_lora=1,thr=-1", "-o", str(resized)]
    assert _main(["resize", str(path), *recipe]) == 0
    assert load_file(resized)


def test_a_part_that_is_frozen_stays_in_the_file_that_it_came_from(tmp_path: Path):
    """Continued with text_encoder_lr = 0, a LoRA keeps what it has of the text encoders: the U-Net was trained with it."""
    shape = Shape(4, 2.0, 2, 2.0)
    with adapted(tiny_base(), shape, 7, ("te", "unet")) as adapter:
        moved(adapter)
        tensors = load_file(written(tmp_path, adapter))
    with adapted(tiny_base(), shape, 8, ("unet",), init=tensors) as adapter:
        assert adapter.counts() == {"unet": 788, "te": 264} and adapter.parts == ("unet",)
        assert not any(name.startswith("lora_te") for name in adapter.parameters())
        assert not adapter.trains_text
        again = load_file(written(tmp_path, adapter))
    assert all(torch.allclose(again[name], tensor, rtol=1e-5) for name, tensor in tensors.items())


def test_names_of_other_trainers_are_read():
    linear = "unet.down_blocks.1.attentions.0.proj_in"
    tensors = {f"{linear}.lora_A.weight": torch.ones(3, 48), f"{linear}.lora_B.weight": torch.ones(48, 3)}
    found = {name: (one.dim, one.alpha) for name, one in layers_of_file(tensors).items()}
    assert found == {"lora_unet_input_blocks_4_1_proj_in": (3, 3.0)}
    with adapted(tiny_base(), Shape(8, 1.0, 8, 1.0), 7, ("unet",), init=tensors) as adapter:
        assert adapter.modules["lora_unet_input_blocks_4_1_proj_in"].change().unique().tolist() == [3.0]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_unet_foo.lora_up.weight": (4, 2)}, "lora_unet_foo.lora_up.weight is no tensor of an adapter"),
        ({"lora_unet_input_blocks_4_1_proj_in.lora_upp.weight": (4, 2)}, "training cannot go on from that"),
        ({"lora_unet_input_blocks_4_1_proj_in.alpha": ()}, "has alpha alone"),
        (
            {
                f"lora_unet_input_blocks_4_1_proj_in.hada_w{n}_{ab}": (48, 2) if ab == "a" else (2, 48)
                for n in "12"
                for ab in "ab"
            },
            'is loha; set recipe.network_args.algo = "loha"',
        ),
        (
            {
                "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": (40, 2),
                "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (2, 48),
            },
            r"do not fit the base's weight \[48, 48\]",
        ),
    ],
)
def test_a_file_that_cannot_be_continued_is_told_in_a_line(tensors: dict[str, tuple[int, ...]], said: str):
    init = {name: torch.ones(shape) for name, shape in tensors.items()}
    with pytest.raises(JobError, match=said), adapted(tiny_base(), Shape(4, 1.0, 4, 1.0), 7, ("unet",), init=init):
        pass


# which layers


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_layers_of_its_table_and_no_others(preset: str):
    """788, 750, 722, 560, 788, 722 and 66 of the U-Net; 264, 176 or none of the text encoders: name by name."""
    golden = (Path(__file__).parent / "goldens/unet_keymap.tsv").read_text().splitlines()
    everything = {line.split("\t")[0] for line in golden if line.endswith("\tadapted")}
    kernels = {
        name for name in everything if name.endswith(("in_layers_2", "out_layers_3", "_op", "_2_conv", "_1_conv"))
    }
    inner = {name for name in everything if "_transformer_blocks_" in name or name.endswith(("_proj_in", "_proj_out"))}
    expected = {
        "full": everything,
        "full-lin": everything - kernels,
        "attn-mlp": inner,
        "attn-only": {name for name in everything if "_attn1_" in name or "_attn2_" in name},
        "unet-only": everything,
        "unet-transformer-only": inner,
        "unet-convblock-only": everything - inner,
    }[preset]
    assert preset_layers(preset, "unet") == expected
    counts = COUNTS[preset]
    parts = [part for part in ("te", "unet") if preset.startswith("unet") is False or part == "unet"]
    with adapted(tiny_base(), Shape(2, 1.0, 2, 1.0, preset=preset), 7, parts) as adapter:
        assert adapter.counts() == {"unet": counts["unet"], "te": counts["te1"] + counts["te2"]}
        assert {name for name in adapter.modules if name.startswith("lora_unet_")} == expected
        text = {name for name in adapter.modules if name.startswith("lora_te")}
        assert preset != "attn-only" or all("_self_attn_" in name for name in text)


def test_norms_are_those_of_resnets_and_transformers():
    assert {preset: len(preset_norms(preset)) for preset in PRESETS} == {
        "full": 255, "full-lin": 255, "attn-mlp": 221, "attn-only": 0,
        "unet-only": 255, "unet-transformer-only": 221, "unet-convblock-only": 34,
    }  # fmt: skip
    assert "lora_unet_out_0" not in preset_norms("full")


def test_blocks_have_ranks_and_alphas_of_their_own():
    options = {
        "block_dims": {"INP07": 6, "TE1": 0, "OUT08": 0},
        "conv_block_dims": {"INP01": 5, "OUT08": 0},
        "block_alphas": {"INP07": 3.0},
    }
    with adapted(tiny_base(), Shape(4, 2.0, 2, 1.0, options=options), 7, ("te", "unet")) as adapter:
        assert adapter.counts() == {"unet": 784, "te": 192} and adapter.parts == ("te2", "unet")
        ranks = {name: (module.dim, module.scale) for name, module in adapter.modules.items()}
    assert ranks["lora_unet_input_blocks_7_1_proj_in"] == (6, 0.5)
    assert ranks["lora_unet_input_blocks_8_1_proj_in"] == (4, 0.5)
    assert ranks["lora_unet_input_blocks_1_0_in_layers_2"] == (5, 0.2)
    assert ranks["lora_unet_input_blocks_2_0_in_layers_2"] == (2, 0.5)


def test_nothing_to_train_is_an_error():
    options = {"block_dims": {"TE1": 0, "TE2": 0}}
    with (
        pytest.raises(JobError, match="no layer to train"),
        adapted(tiny_base(), Shape(4, 2.0, 2, 1.0, options=options), 7, ("te",)),
    ):
        pass


# the optimizer's groups


def groups(recipe: dict[str, Any], parts: tuple[str, ...] = ("te", "unet")) -> list[tuple[str, str, float, int]]:
    args = {"network_dim": 4, "network_alpha": 2.0, **recipe}
    with adapted(tiny_base(), Shape.of(args), 7, parts) as adapter:
        return [(one["name"], one["logged"], one["lr"], len(one["params"])) for one in adapter.groups(args)]


def test_each_part_is_a_group_with_its_rate():
    assert groups({"unet_lr": 3e-4, "text_encoder_lr": 1e-4}) == [
        ("te1", "textencoder", 1e-4, 144), ("te2", "textencoder", 1e-4, 384), ("unet", "unet", 3e-4, 1576),
    ]  # fmt: skip
    assert groups({"unet_lr": 0.0, "text_encoder_lr": [0.0, 2e-4]}, ("te2",)) == [("te2", "textencoder 2", 2e-4, 384)]


def test_lora_plus_gives_up_matrices_another_rate():
    args = {"loraplus_lr_ratio": 16.0, "loraplus_text_encoder_lr_ratio": 4.0}
    found = groups({"unet_lr": 1e-4, "text_encoder_lr": 1e-5, "network_args": args})
    assert found == [
        ("te1", "textencoder", 1e-5, 72), ("te1+plus", "textencoder plus", pytest.approx(4e-5), 72),
        ("te2", "textencoder", 1e-5, 192), ("te2+plus", "textencoder plus", pytest.approx(4e-5), 192),
        ("unet", "unet", 1e-4, 788), ("unet+plus", "unet plus", pytest.approx(1.6e-3), 788),
    ]  # fmt: skip
