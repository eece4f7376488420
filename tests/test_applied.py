"""A LoRA file put on a base: every kind adds what LyCORIS' own formulas say, at its exact strength, and leaves no trace."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_base import RECIPE, tiny_base

from lorabuild.errors import JobError
from lorabuild.nn.adapter import Shape, adapted
from lorabuild.nn.applied import applied, bare
from lorabuild.nn.export import write_adapter
from lorabuild.nn.warm import forget

LAYERS = {
    "lora_unet_input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "lora_unet_input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "lora_unet_input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    ),
}
ALGOS: dict[str, dict[str, Any]] = {
    "locon": {},
    "locon+tucker": {"use_tucker": True},
    "locon+dora": {"weight_decompose": True, "wd_on_out": True},
    "loha": {},
    "lokr": {"factor": 4},
    "lokr+dora": {"weight_decompose": True},
    "full": {},
    "diag-oft": {"constraint": 0},
    "boft": {"constraint": 0},
    "glora": {},
    "ia3": {},
}


def layer(path: str) -> torch.nn.Module:
    return tiny_base().unet.get_submodule(path)


def made(algo: str, name: str, module: torch.nn.Module) -> Any:
    """A module of LyCORIS with random weights on a layer, float32."""
    from lycoris.modules import boft, diag_oft, full, glora, ia3, locon, loha, lokr

    kinds = {
        "locon": locon.LoConModule, "loha": loha.LohaModule, "lokr": lokr.LokrModule, "full": full.FullModule,
        "diag-oft": diag_oft.DiagOFTModule, "boft": boft.ButterflyOFTModule, "glora": glora.GLoRAModule,
        "ia3": ia3.IA3Module,
    }  # fmt: skip
    torch.manual_seed(len(name))
    adapter = kinds[algo.partition("+")[0]](name, module, 1.0, 4, 2.0, bypass_mode=False, **ALGOS[algo])
    with torch.no_grad():
        for key, parameter in adapter.named_parameters():
            if "dora_scale" not in key:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapter.eval()


@torch.no_grad()
@pytest.mark.parametrize("algo", ALGOS)
def test_every_kind_adds_what_lycoris_says(tmp_path: Path, algo: str):
    base, tensors, expected, inputs = tiny_base(), {}, {}, {}
    for name, path in LAYERS.items():
        module = deepcopy(layer(path))
        if algo == "boft" and module.out_channels % 32 if hasattr(module, "out_channels") else algo == "boft":
            continue  # has butterflies of some sizes only
        adapter = made(algo, name, module)
        shape = (2, module.in_channels, 8, 8) if module.weight.ndim == 4 else (2, 6, module.in_features)
        inputs[path] = torch.randn(shape)
        adapter.apply_to()
        expected[path] = module(inputs[path])
        state = adapter.custom_state_dict() or adapter.state_dict()
        tensors |= {f"{name}.{key}": one.contiguous().clone() for key, one in state.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    with applied(base, tmp_path / "lora.safetensors") as unknown:
        found = {path: layer(path)(one) for path, one in inputs.items()}
    assert found and unknown == []
    for path, out in found.items():
        plain = layer(path)(inputs[path])
        assert not torch.allclose(out, plain, atol=1e-4), "it does something"
        assert torch.allclose(out, expected[path], atol=1e-4, rtol=1e-4), path


@torch.no_grad()
def test_norms_and_biases_change_too(tmp_path: Path):
    base = tiny_base()
    name, path = "lora_unet_input_blocks_1_0_in_layers_0", "down_blocks.0.resnets.0.norm1"
    dense, where = "lora_unet_input_blocks_4_1_proj_in", "down_blocks.1.attentions.0.proj_in"
    norm, proj = layer(path), layer(where)
    tensors = {
        f"{name}.w_norm": torch.randn_like(norm.weight),
        f"{name}.b_norm": torch.randn_like(norm.bias),
        f"{dense}.diff": torch.randn_like(proj.weight),
        f"{dense}.diff_b": torch.randn_like(proj.bias),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    x, y = torch.randn(2, norm.num_channels, 4, 4), torch.randn(2, 5, proj.in_features)
    with applied(base, tmp_path / "lora.safetensors") as unknown:
        out, other = norm(x), proj(y)
    assert unknown == []
    weight, bias = norm.weight + tensors[f"{name}.w_norm"], norm.bias + tensors[f"{name}.b_norm"]
    assert torch.allclose(out, torch.nn.functional.group_norm(x, norm.num_groups, weight, bias, norm.eps), atol=1e-5)
    weight, bias = proj.weight + tensors[f"{dense}.diff"], proj.bias + tensors[f"{dense}.diff_b"]
    assert torch.allclose(other, torch.nn.functional.linear(y, weight, bias), atol=1e-4)


def forwards() -> list[str]:
    base = tiny_base()
    networks = (base.unet, base.te1, base.te2)
    return [name for network in networks for name, module in network.named_modules() if "forward" in vars(module)]


@torch.no_grad()
@pytest.mark.parametrize(
    "args",
    [
        {"algo": "locon", "train_norm": True},
        pytest.param({"algo": "locon", "dora_wd": True, "use_tucker": True}, marks=pytest.mark.slow),
        pytest.param({"algo": "loha"}, marks=pytest.mark.slow),
        pytest.param({"algo": "lokr", "dora_wd": True}, marks=pytest.mark.slow),
        pytest.param({"algo": "full"}, marks=pytest.mark.slow),
        pytest.param({"algo": "dylora", "block_size": 2}, marks=pytest.mark.slow),
        pytest.param({"algo": "diag-oft"}, marks=pytest.mark.slow),
        pytest.param({"algo": "boft"}, marks=pytest.mark.slow),
        pytest.param({"algo": "glora"}, marks=pytest.mark.slow),
        pytest.param({"algo": "ia3"}, marks=pytest.mark.slow),
    ],
    ids=lambda args: "+".join(map(str, args.values())),
)
def test_what_was_trained_and_saved_acts_as_it_did_in_training(tmp_path: Path, args: dict[str, Any]):
    dim = 16 if args["algo"] == "boft" else 4  # butterflies are of some sizes only
    own = {"preset": "full", "conv_dim": dim, "conv_alpha": 1.0}
    recipe = RECIPE | {"network_dim": dim, "network_args": own | args}
    base, shape = tiny_base(), Shape.of(recipe)
    torch.manual_seed(1)
    ids, x, timestep = torch.arange(77)[None] % 100, torch.randn(1, 4, 8, 8), torch.tensor([500])
    conditions = {"text_embeds": torch.randn(1, 56), "time_ids": torch.full((1, 6), 64.0)}

    def answer() -> torch.Tensor:
        hidden = [te(ids, output_hidden_states=True).hidden_states[-2] for te in (base.te1, base.te2)]
        return base.unet(x, timestep, torch.cat(hidden, 2), added_cond_kwargs=conditions).sample

    plain = answer()
    with adapted(base, shape, 7, ("te", "unet")) as adapter:
        adapter.measuring()
        for number, (name, parameter) in enumerate(adapter.parameters().items()):
            if "dora_scale" not in name:
                chance = torch.Generator().manual_seed(number)
                parameter.add_(torch.randn(parameter.shape, generator=chance) * 0.01)
        write_adapter(tmp_path / "w", adapter, shape.alpha, "fp32")
        live, before = answer(), forwards()
        with bare(base):
            assert torch.equal(answer(), plain), "without the adapter it is the base"
        with applied(base, tmp_path / "w") as unknown:
            saved = answer()
        assert unknown == []
        assert torch.equal(answer(), live), "the training's adapter is on it again"
        assert forwards() == before
    change = (live - plain).norm()
    assert change > 1e-3
    assert (saved - live).norm() < 1e-3 * change
    assert forwards() == []


@torch.no_grad()
@pytest.mark.parametrize("kind", ["low rank", "difference"])
def test_in_half_precision_a_small_change_keeps_its_strength(tmp_path: Path, kind: str):
    """A ten-thousandth of the weights: added to bf16 weights, nearly all of it would be rounded away."""
    base = tiny_base(torch.bfloat16)
    for name, path in LAYERS.items():
        module = base.unet.get_submodule(path)
        weight, chance = module.weight.float(), torch.Generator().manual_seed(3)
        up = torch.randn(len(weight), 2, generator=chance)
        down = torch.randn(2, *weight.shape[1:], generator=chance)
        change = torch.einsum("or,r...->o...", up, down)
        size = 1e-4 * weight.norm() / change.norm()
        tensors = {f"{name}.diff": change * size}
        if kind == "low rank":
            up = (up * size).reshape(-1, 2, *[1] * (weight.ndim - 2))
            tensors = {
                f"{name}.lora_up.weight": up,
                f"{name}.lora_down.weight": down,
                f"{name}.alpha": torch.tensor(2.0),
            }
        save_file(tensors, tmp_path / "lora.safetensors")
        x = torch.randn((4096, module.in_features) if weight.ndim == 2 else (16, module.in_channels, 16, 16))
        x = x.to(torch.bfloat16)
        plain = module(x).float()
        with torch.autocast("cpu", torch.bfloat16), applied(base, tmp_path / "lora.safetensors"):
            found = module(x).float() - plain
        own = torch.nn.functional.linear(x.float(), change * size) if weight.ndim == 2 else None
        if own is None:
            own = torch.nn.functional.conv2d(x.float(), change * size, None, module.stride, module.padding)
        strength = (found * own).sum() / (own * own).sum()
        assert strength.item() == pytest.approx(1, abs=0.1), path
    forget()


def test_a_lora_for_another_shape_is_refused_by_name(tmp_path: Path):
    name = "lora_unet_input_blocks_4_1_proj_in"
    tensors = {f"{name}.lora_up.weight": torch.ones(7, 2), f"{name}.lora_down.weight": torch.ones(2, 5)}
    save_file(tensors, tmp_path / "lora.safetensors")
    with (
        pytest.raises(JobError, match=rf"{name}: is for a weight \[7, 5\]"),
        applied(tiny_base(), tmp_path / "lora.safetensors"),
    ):
        pass


def test_what_a_base_lacks_is_told(tmp_path: Path):
    tensors = {
        "lora_unet_nowhere.lora_up.weight": torch.ones(7, 2),
        "lora_unet_nowhere.lora_down.weight": torch.ones(2, 5),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    with applied(tiny_base(), tmp_path / "lora.safetensors") as unknown:
        assert unknown == ["lora_unet_nowhere"]
