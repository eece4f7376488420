"""The adapter: on the right layers, exact on a base in bf16, gone without a trace, and one alpha in the file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lycoris.modules.locon import LoConModule
from safetensors.torch import load_file
from tiny_base import tiny_base
from torch import Tensor, nn

from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.lora.keymap import EXPECTED
from lorabuild.nn.adapter import Adapter, Shape, adapted
from lorabuild.nn.adapters.chance import Chance
from lorabuild.nn.adapters.module import Module
from lorabuild.nn.export import one_alpha, write_adapter
from lorabuild.nn.lowrank import lowrank_linear

SHAPE = Shape(dim=4, alpha=2.0, conv_dim=2, conv_alpha=1.0)
BOTH = ("te", "unet")
LINEAR, CONV = "lora_unet_input_blocks_4_1_proj_in", "lora_unet_input_blocks_1_0_in_layers_2"


# one node for a layer and its adapter


def lycoris(layer: nn.Module, dim: int = 4, bypass: bool = True) -> LoConModule:
    module = LoConModule("x", layer, 1.0, dim, 2.0, bypass_mode=bypass)
    nn.init.normal_(module.lora_up.weight)
    return module


def adapter_of(layer: nn.Module, down: nn.Parameter, up: nn.Parameter, scale: float) -> Module:
    """Ours, on the layer."""
    tensors = {"lora_down.weight": down, "lora_up.weight": up}
    module = Module("x", layer, "locon", tensors, len(down), scale, {}, Chance(0))
    module.attach()
    return module


def gradients(out: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum(), of)


@pytest.mark.parametrize("bypass", [True, False], ids=["bypass", "rebuild"])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_lycoris(bias: bool, bypass: bool):
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    module = lycoris(layer, bypass=bypass)
    down, up = module.lora_down.weight, module.lora_up.weight
    x = torch.randn(2, 7, 24, requires_grad=True)
    theirs = module(x)
    ours = lowrank_linear(x, layer.weight, layer.bias, down, up, module.scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-6)
    for mine, expected in zip(gradients(ours, x, down, up), gradients(theirs, x, down, up), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bypass", [True, False], ids=["bypass", "rebuild"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_convolutions_are_lycoris_too(kernel: int, stride: int, bypass: bool):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, kernel, stride, kernel // 2).requires_grad_(False)
    module = lycoris(layer, bypass=bypass)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    parameters = (x, module.lora_down.weight, module.lora_up.weight)
    theirs = module(x)
    adapter_of(layer, module.lora_down.weight, module.lora_up.weight, module.scale)
    ours = layer(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, expected in zip(gradients(ours, *parameters), gradients(theirs, *parameters), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 5, requires_grad=True), torch.randn(6, 5), torch.randn(6)
    down, up = torch.randn(2, 5, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    double = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, weight, bias, down, up)]
    assert torch.autograd.gradcheck(lambda *tensors: lowrank_linear(*tensors, 0.7), double)


def test_a_frozen_input_gets_no_gradient():
    down, up = torch.randn(2, 5, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    lowrank_linear(torch.randn(3, 5), torch.randn(6, 5), None, down, up, 1.0).sum().backward()
    assert down.grad is not None and up.grad is not None


@pytest.mark.parametrize("size", [3e-4, 3e-3, 3e-2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_small_update_is_not_rounded_away_on_a_bf16_base(size: float, bias: bool):
    """|dW| = size |W|. The part of it that reaches the layer's output in bf16, over many inputs, is all of it."""
    torch.manual_seed(0)
    layer = nn.Linear(256, 256, bias=bias).to(torch.bfloat16).requires_grad_(False)
    down, up = torch.randn(8, 256) / 16, torch.randn(256, 8) / 16
    update = up @ down
    up *= size * layer.weight.float().norm() / update.norm()
    update = up @ down
    x = torch.randn(8192, 256).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        change = lowrank_linear(x, layer.weight, layer.bias, down, up, 1.0).float() - layer(x).float()
        exact = x.float() @ update.t()
    arrived = (change * exact).sum() / exact.square().sum()
    assert arrived.item() == pytest.approx(1, abs=0.02)
    rebuilt = (layer.weight.float() + update).to(torch.bfloat16).float() - layer.weight.float()
    lost = ((rebuilt - update).norm() / update.norm()).item()
    assert lost > {3e-4: 0.8, 3e-3: 0.3, 3e-2: 0.03}[size], "what rounding W + dW to bf16 would lose"


@pytest.mark.parametrize("size", [3e-4, 3e-3])
@pytest.mark.parametrize("kernel", [1, 3])
def test_nor_is_that_of_a_convolution(size: float, kernel: int):
    """As above. The base's output is rounded to bf16, the update added to it is not."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, kernel, padding=kernel // 2, bias=False).to(torch.bfloat16).requires_grad_(False)
    down, up = nn.Conv2d(64, 8, kernel, padding=kernel // 2, bias=False), nn.Conv2d(8, 64, 1, bias=False)
    x = torch.randn(16, 64, 16, 16).to(torch.bfloat16)
    with torch.no_grad():
        exact, base = up(down(x.float())), conv(x).float()
        scale = (size * base.norm() / exact.norm()).item()
        exact *= scale
        adapter_of(conv, down.weight, up.weight, scale)
        with torch.autocast("cpu", torch.bfloat16):
            change = conv(x) - base
    assert ((change * exact).sum() / exact.square().sum()).item() == pytest.approx(1, abs=0.02)


def test_under_autocast_products_are_in_bf16_and_gradients_in_float32():
    layer = nn.Linear(8, 8).to(torch.bfloat16).requires_grad_(False)
    down, up = torch.randn(2, 8, requires_grad=True), torch.randn(8, 2, requires_grad=True)
    x = torch.randn(3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = lowrank_linear(x, layer.weight, layer.bias, down, up, 1.0)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert {t.grad.dtype for t in (x, down, up)} == {torch.float32}


# on the base and off again


@pytest.fixture(scope="module")
def fresh() -> dict[str, Tensor]:
    """Parameters of a fresh adapter with seed 7."""
    with adapted(tiny_base(), SHAPE, 7, BOTH) as adapter:
        return {name: p.detach().clone() for part in BOTH for name, p in adapter.parameters(part).items()}


def test_it_adapts_exactly_the_layers_that_kohyas_trainer_does(fresh: dict[str, Tensor]):
    golden = (Path(__file__).parent / "goldens/unet_keymap.tsv").read_text().splitlines()
    expected = {line.split("\t")[0] for line in golden if line.endswith("\tadapted")}
    modules = {name.partition(".")[0] for name in fresh}
    assert {name for name in modules if name.startswith("lora_unet_")} == expected
    for component in ("te1", "te2"):
        found = [name for name in modules if name.startswith(f"lora_{component}_text_model_encoder_layers_")]
        assert len(found) == EXPECTED[component]
    assert len(modules) == sum(EXPECTED.values())


def test_convolutions_have_their_own_rank(fresh: dict[str, Tensor]):
    assert fresh[f"{LINEAR}.lora_down.weight"].shape == (4, 48)
    assert fresh[f"{CONV}.lora_down.weight"].shape == (2, 32, 3, 3)
    assert fresh["lora_unet_input_blocks_4_0_skip_connection.lora_down.weight"].shape == (4, 32, 1, 1)


def test_it_starts_without_effect_and_down_is_uniform_in_the_root_of_its_fan_in(fresh: dict[str, Tensor]):
    assert all(not tensor.any() for name, tensor in fresh.items() if ".lora_up." in name)
    for name in (LINEAR, CONV):
        down = fresh[f"{name}.lora_down.weight"]
        bound = 1 / math.sqrt(down[0].numel())
        assert 0.9 * bound < down.abs().max() <= bound
        assert down.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_a_layers_start_depends_on_the_seed_and_its_name_alone(fresh: dict[str, Tensor]):
    torch.manual_seed(123)
    name = f"{LINEAR}.lora_down.weight"
    with adapted(tiny_base(), SHAPE, 7, ("unet",)) as adapter:
        assert torch.equal(adapter.parameters("unet")[name], fresh[name])
        assert adapter.counts() == {"unet": 788, "te": 0}
    with adapted(tiny_base(), SHAPE, 8, ("unet",)) as adapter:
        assert not torch.equal(adapter.parameters("unet")[name], fresh[name])


def test_it_leaves_no_trace_on_the_base():
    base = tiny_base()
    noise, hidden = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 96)
    conditions = {"text_embeds": torch.randn(1, 56), "time_ids": torch.zeros(1, 6)}

    def predict() -> Tensor:
        return base.unet(noise, torch.tensor([5]), hidden, added_cond_kwargs=conditions).sample

    with torch.no_grad():
        before = predict()
        with pytest.raises(KeyError), adapted(base, SHAPE, 7, ("unet",)) as adapter:
            torch.testing.assert_close(predict(), before, rtol=0, atol=1e-5)
            for name, parameter in adapter.parameters("unet").items():
                if ".lora_up." in name:
                    parameter.fill_(0.1)
            assert not torch.allclose(predict(), before, atol=1e-2)
            raise KeyError
        assert torch.equal(predict(), before)
    assert not any("forward" in vars(module) for module in base.unet.modules())


def test_a_base_that_is_not_sdxl_is_refused_and_left_alone():
    base = tiny_base()
    other = replace(base, unet=nn.ModuleDict({"mid_block": base.unet.mid_block}))
    with (
        pytest.raises(JobError, match="unet: the adapter found 108 layers, SDXL has 788"),
        adapted(other, SHAPE, 7, BOTH),
    ):
        pass
    assert not any("forward" in vars(module) for module in base.unet.modules())


# the file


def written(tmp_path: Path, adapter: Adapter, alpha: float, precision: str) -> dict[str, Tensor]:
    write_adapter(tmp_path / "body", adapter, alpha, precision)
    return load_file(tmp_path / "body")


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_a_file_has_one_alpha_one_dtype_and_the_same_effect(tmp_path: Path, precision: str, dtype: str):
    with adapted(tiny_base(), SHAPE, 7, ("unet",)) as adapter:
        parameters = adapter.parameters("unet")
        with torch.no_grad():
            for name, parameter in parameters.items():
                if ".lora_up." in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        file = written(tmp_path, adapter, SHAPE.alpha, precision)
        header = read_header(tmp_path / "body")
        assert list(header.tensors) == sorted(header.tensors) and len(header.tensors) == 3 * 788
        assert {info.dtype for info in header.tensors.values()} == {dtype} and not header.metadata
        assert {tensor.item() for name, tensor in file.items() if name.endswith(".alpha")} == {SHAPE.alpha}
        assert all(tensor.shape == () for name, tensor in file.items() if name.endswith(".alpha"))
        for name, scale in ((LINEAR, SHAPE.alpha / SHAPE.dim), (CONV, SHAPE.conv_alpha / SHAPE.conv_dim)):
            up, down = (parameters[f"{name}.lora_{kind}.weight"].detach().flatten(1) for kind in ("up", "down"))
            file_up, file_down = (file[f"{name}.lora_{kind}.weight"].float().flatten(1) for kind in ("up", "down"))
            effect = SHAPE.alpha / file_down.shape[0] * file_up @ file_down
            error = (effect - scale * up @ down).norm() / (scale * up @ down).norm()
            assert error < {"fp16": 1e-3, "bf16": 5e-3, "fp32": 1e-6}[precision]
        if precision == "fp32":
            kept = parameters[f"{LINEAR}.lora_up.weight"]
            assert torch.equal(file[f"{LINEAR}.lora_up.weight"], kept), "layers with the file's alpha stay as trained"


def test_a_weight_that_the_dtype_cannot_hold_is_named(tmp_path: Path):
    with adapted(tiny_base(), SHAPE, 7, ("unet",)) as adapter:
        with torch.no_grad():
            adapter.parameters("unet")[f"{LINEAR}.lora_up.weight"][0, 0] = 1e6
        with pytest.raises(JobError, match=rf"{LINEAR}\.lora_up\.weight: a weight of 1e\+06 does not fit float16"):
            written(tmp_path, adapter, SHAPE.alpha, "fp16")


def test_the_one_alpha_is_representable():
    assert one_alpha(4, torch.float16) == 4
    assert one_alpha(0.1, torch.float16) == float(torch.tensor(0.1).half())
    assert one_alpha(1e-12, torch.float16) == one_alpha(1e6, torch.float16) == 1
