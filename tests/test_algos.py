"""Each algorithm of LyCORIS: its change is LyCORIS' own, the forward pass is the merge, and no digit of it is lost in bf16."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn
from torch.nn import Parameter, functional

from lorabuild.lora.adapter_tensors import butterfly, factorization, layout, norm_layout
from lorabuild.nn.adapters.chance import Chance
from lorabuild.nn.adapters.limits import limit_norms
from lorabuild.nn.adapters.module import Module, lowrank_is_cheaper
from lorabuild.nn.adapters.start import drawn
from lorabuild.nn.adapters.weights import column_norms, scale_of

PLAIN: dict[str, Any] = {}
KINDS = {
    "locon": ("locon", PLAIN),
    "locon, tucker, scalar": ("locon", {"use_tucker": True, "use_scalar": True}),
    "locon, rs": ("locon", {"rs_lora": True}),
    "locon, DoRA": ("locon", {"dora_wd": True}),
    "locon, DoRA, tucker, scalar": ("locon", {"dora_wd": True, "use_tucker": True, "use_scalar": True}),
    "locon, DoRA on inputs": ("locon", {"dora_wd": True, "wd_on_output": False}),
    "dylora": ("dylora", {"block_size": 2}),
    "loha": ("loha", PLAIN),
    "loha, tucker, scalar": ("loha", {"use_tucker": True, "use_scalar": True}),
    "loha, DoRA": ("loha", {"dora_wd": True}),
    "lokr": ("lokr", PLAIN),
    "lokr, factor 2": ("lokr", {"factor": 2}),
    "lokr, both": ("lokr", {"decompose_both": True, "factor": 10}),
    "lokr, tucker, scalar": ("lokr", {"use_tucker": True, "use_scalar": True, "factor": 2}),
    "lokr, whole": ("lokr", {"full_matrix": True}),
    "lokr, unbalanced": ("lokr", {"unbalanced_factorization": True, "factor": 4}),
    "lokr, DoRA": ("lokr", {"dora_wd": True}),
    "full": ("full", PLAIN),
    "ia3": ("ia3", PLAIN),
    "diag-oft": ("diag-oft", PLAIN),
    "diag-oft, rescaled, constraint": ("diag-oft", {"rescaled": True, "constraint": 1e-3}),
    "boft": ("boft", PLAIN),
    "boft, rescaled, constraint": ("boft", {"rescaled": True, "constraint": 1e-3}),
    "glora": ("glora", PLAIN),
    "glora, scalar": ("glora", {"use_scalar": True}),
}
LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "linear, no bias": lambda: nn.Linear(40, 24, bias=False),
    "3x3": lambda: nn.Conv2d(24, 40, 3, padding=1),
    "3x3, stride": lambda: nn.Conv2d(24, 24, 3, 2, padding=1),
    "1x1": lambda: nn.Conv2d(24, 40, 1),
}
ORACLES = {
    "locon": LoConModule,
    "loha": LohaModule,
    "lokr": LokrModule,
    "glora": GLoRAModule,
    "ia3": IA3Module,
    "diag-oft": DiagOFTModule,
    "boft": ButterflyOFTModule,
}
EACH = list(itertools.product(KINDS, LAYERS))


def has_oracle(kind: str) -> bool:
    """DoRA is compared in the forward pass alone."""
    algo, options = KINDS[kind]
    return algo in ORACLES and "dora_wd" not in options


def made(kind: str, layer: nn.Module, dim: int = 4, alpha: float = 2.0, size: float = 0.3, **more: Any) -> Module:
    """A trained adapter: as it starts, and then everything moved."""
    algo, options = KINDS[kind]
    dim = 10 if algo == "boft" else dim
    if algo == "boft" and layer.weight.shape[0] == 24:
        dim = 6
    options = {**options, "bias": layer.bias is not None, **more}
    starts = layout(algo, tuple(layer.weight.shape), dim, options)
    tensors = {}
    for number, (name, start) in enumerate(starts.items()):
        tensor = drawn(7, "layer", name, start, layer.weight)
        noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(number))
        move = size**0.5 if name == "scalar" else size * (0.1 if name in ("dora_scale", "rescale") else 1)
        tensors[name] = Parameter(tensor + move * noise)
    scale = scale_of(options, algo, dim, alpha, starts)
    return Module("layer", layer.requires_grad_(False), algo, tensors, dim, scale, options, Chance(7))


def merged(module: Module) -> tuple[Tensor, Tensor | None]:
    """W + dW and the bias by the definitions, in float64 and from files' tensors; written anew, to compare with."""
    t = {name: tensor.detach().double() for name, tensor in module.joined().items()}
    weight, bias = module.weight.double(), module.layer.bias
    bias = None if bias is None else bias.double()
    out, *rest = weight.shape
    factor = module.scale * module.norm_scale * t.get("scalar", 1.0)
    algo = module.algo
    if algo == "full":
        return weight + t["diff"], None if bias is None else bias + t["diff_b"]
    if algo == "ia3":
        return weight * (1 + t["weight"].reshape(out, *[1] * len(rest))), bias
    if algo in ("diag-oft", "boft"):
        return turned(t, weight, module.constraint * out), bias
    if algo in ("locon", "dylora"):
        down = t["lora_down.weight"]
        if "lora_mid.weight" in t:
            down = torch.einsum("rs...,si->ri...", t["lora_mid.weight"], down.flatten(1))
        change = t["lora_up.weight"].flatten(1) @ down.flatten(1)
    elif algo == "loha":
        parts = []
        for n in "12":
            a, b, core = t[f"hada_w{n}_a"], t[f"hada_w{n}_b"], t.get(f"hada_t{n}")
            parts.append(a @ b if core is None else torch.einsum("rs...,ro,si->oi...", core, a, b).flatten(1))
        change = parts[0] * parts[1]
    elif algo == "lokr":
        one = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        if "lokr_w2" in t:
            two = t["lokr_w2"]
        elif "lokr_t2" in t:
            two = torch.einsum("rs...,ro,si->oi...", t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
        else:
            two = (t["lokr_w2_a"] @ t["lokr_w2_b"]).view(len(t["lokr_w2_a"]), -1, *rest[1:])
        change = torch.kron(one.view(*one.shape, *[1] * (len(rest) - 1)), two.contiguous())
    else:
        rows = weight.movedim(1, -1) @ t["a1.weight"].flatten(1) @ t["a2.weight"].flatten(1)
        change = rows.movedim(-1, 1) + (t["b1.weight"].flatten(1) @ t["b2.weight"].flatten(1)).view(weight.shape)
    whole = weight + factor * change.reshape(weight.shape)
    if "dora_scale" in t:
        norms = column_norms(whole, t["dora_scale"].shape[0] == out)
        whole = whole * t["dora_scale"] / norms
    return whole, bias


def turned(t: dict[str, Tensor], weight: Tensor, limit: float) -> Tensor:
    blocks = t["oft_blocks"]
    skew = blocks - blocks.transpose(-1, -2)
    if limit and skew.norm() > limit:
        skew = skew * limit / skew.norm()
    one = torch.eye(blocks.shape[-1]).double()
    turns = (one + skew) @ torch.linalg.inv(one - skew)
    rows = weight.flatten(1)
    if blocks.dim() == 3:
        rows = torch.cat([r.t() @ part for r, part in zip(turns, rows.split(len(one)), strict=True)])
    else:
        for stage, turn in enumerate(turns):
            half = 2**stage * len(one) // 2
            order = torch.arange(len(rows)).view(-1, 2, half).transpose(1, 2).flatten()
            mixed = torch.cat([r @ part for r, part in zip(turn, rows[order].split(len(one)), strict=True)])
            rows = torch.empty_like(rows).index_copy_(0, order, mixed)
    gain = t.get("rescale", torch.ones(len(rows)).double()).view(-1, 1)
    return (gain * rows).view(weight.shape)


def given(layer: nn.Module, batch: int = 2) -> Tensor:
    stream = torch.Generator().manual_seed(3)
    if isinstance(layer, nn.Linear):
        return torch.randn(batch, 7, layer.in_features, generator=stream)
    return torch.randn(batch, layer.in_channels, 8, 6, generator=stream)


def run(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    return functional.conv2d(x, weight, bias, layer.stride, layer.padding)


@pytest.mark.parametrize(("kind", "of"), EACH)
def test_the_forward_pass_is_the_merge(kind: str, of: str):
    torch.manual_seed(0)
    layer = LAYERS[of]()
    module = made(kind, layer)
    x = given(layer)
    exact = run(layer, x.double(), *merged(module))
    change = exact - run(layer, x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    assert change.norm() > 0.02 * exact.norm(), "an adapter that does something"
    module.attach()
    got = layer(x)
    assert (got.double() - exact).norm() / exact.norm() < 1e-6
    module.detach()
    assert torch.equal(layer(x), run(layer, x, layer.weight, layer.bias))


@pytest.mark.parametrize(("kind", "of"), [one for one in EACH if has_oracle(one[0])])
def test_the_change_is_lycoris_own(kind: str, of: str):
    """Its dW of the same tensors, by its own classes. DyLoRA, full and norms are the formulas above."""
    algo, options = KINDS[kind]
    torch.manual_seed(0)
    layer = LAYERS[of]()
    module = made(kind, layer)
    oracle = ORACLES[algo]("layer", layer, 1.0, module.dim, 2.0, **options)
    for name, tensor in module.tensors.items():
        theirs = oracle
        for part in name.split("."):
            theirs = getattr(theirs, part)
        assert theirs.shape == tensor.shape, name
        theirs.data.copy_(tensor)
    names = {name for name, _ in oracle.named_parameters()}
    assert names == set(module.tensors)
    x = given(layer)
    theirs = oracle(x)
    module.attach()
    torch.testing.assert_close(layer(x), theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 8, 16, 64])
def test_dimensions_are_taken_apart_as_lycoris_does(factor: int):
    from lycoris.functional.general import factorization as theirs
    from lycoris.functional.general import power2factorization

    for dimension in (24, 40, 56, 127, 250, 320, 360, 640, 768, 1280, 2560, 3072, 5120, 10240):
        assert factorization(dimension, factor) == theirs(dimension, factor)
        if factor > 0 and power2factorization(dimension, factor)[1]:
            assert butterfly(dimension, factor) == power2factorization(dimension, factor)
        elif factor > 0:
            with pytest.raises(ValueError, match="boft cannot take its"):
                butterfly(dimension, factor)


@pytest.mark.parametrize(("kind", "of"), [(k, o) for k, o in EACH if o in ("linear", "3x3")])
def test_a_young_change_is_not_rounded_away_on_a_bf16_base(kind: str, of: str):
    """|dW| is about a thousandth of |W|: rounding their sum to bf16 would lose a third to all of it."""
    torch.manual_seed(0)
    layer = LAYERS[of]().to(torch.bfloat16)
    module = made(kind, layer, size=1e-3)
    wide = SimpleNamespace(weight=layer.weight.double(), bias=layer.bias.double())
    x = given(layer, 2048 if of == "linear" else 64).to(torch.bfloat16)
    exact = run(layer, x.double(), *merged(module)) - run(layer, x.double(), wide.weight, wide.bias)
    if module.algo in ("locon", "lokr", "dylora", "loha"):  # these start with one factor that is not small
        assert exact.norm() < 0.05 * layer(x).double().norm()
    module.attach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        adapted = layer(x).double()
        for tensor in module.tensors.values():  # the same layer, its change taken away
            tensor.data.zero_()
        for name, start in layout(module.algo, tuple(layer.weight.shape), module.dim, module.options).items():
            if start.how in ("ones", "norms"):
                module.tensors[name].data.copy_(drawn(7, "layer", name, start, layer.weight))
        before = layer(x).double()
    change = adapted - before
    if adapted.to(torch.bfloat16).double().equal(adapted):  # summed exactly, and rounded once at the very end
        error = 1 - (change * exact).sum() / exact.square().sum()
        assert abs(error) < 0.01
    else:
        assert (change - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize(("kind", "of"), [(k, o) for k, o in EACH if o in ("linear, no bias", "3x3, stride")])
def test_gradients_are_those_of_the_merge(kind: str, of: str):
    torch.manual_seed(0)
    layer = LAYERS[of]()
    module = made(kind, layer)
    module.attach()
    x = given(layer).requires_grad_()
    (layer(x).sin().sum()).backward()
    for name, tensor in [("x", x), *module.tensors.items()]:
        step = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        found = (tensor.grad * step).sum().item()
        with torch.no_grad():
            sides = []
            for sign in (1, -1):
                moved = x.detach() + sign * 1e-3 * step if name == "x" else x.detach()
                if name != "x":
                    tensor += sign * 1e-3 * step
                sides.append(run(layer, moved.double(), *merged(module)).sin().sum().item())
                if name != "x":
                    tensor -= sign * 1e-3 * step
        assert found == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=2e-2, abs=2e-2), name


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 24), nn.LayerNorm(24)], ids=["group", "layer"])
def test_a_norm_has_another_weight_and_bias(norm: nn.Module):
    torch.manual_seed(0)
    nn.init.normal_(norm.weight)
    tensors = {name: Parameter(torch.randn(start.shape)) for name, start in norm_layout(24).items()}
    module = Module("norm", norm, "norm", tensors, 1, 1.0, {}, Chance(7))
    x = torch.randn(2, 24, 8, 24)
    whole = norm.weight + tensors["w_norm"], norm.bias + tensors["b_norm"]
    if isinstance(norm, nn.GroupNorm):
        exact = functional.group_norm(x, 4, *whole, norm.eps)
    else:
        exact = functional.layer_norm(x, (24,), *whole, norm.eps)
    module.attach()
    torch.testing.assert_close(norm(x), exact, rtol=1e-5, atol=1e-5)


def test_the_cheaper_way_is_taken():
    """conv_dim 256 on 320 channels is still cheaper in two steps; 512, or a few pixels, are not."""
    shape = (320, 320, 3, 3)
    sizes = {dim: [dim * 320 * 9, 320 * dim] for dim in (256, 512)}
    assert lowrank_is_cheaper(shape, sizes[256], 256, 128 * 128)
    assert not lowrank_is_cheaper(shape, sizes[512], 512, 128 * 128)
    layer = nn.Conv2d(8, 8, 3, padding=1)
    module = made("locon", layer, dim=32)
    module.attach()
    x = given(layer)
    torch.testing.assert_close(layer(x).double(), run(layer, x.double(), *merged(module)), rtol=1e-5, atol=1e-5)


# scale_weight_norms

GOLDEN = json.loads((Path(__file__).parent / "goldens/max_norm.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["kind"])
def test_norms_are_limited_as_lycoris_does(case: dict[str, Any]):
    up, down = (torch.tensor(case[k]).view(case[f"{k}_shape"]) for k in ("up", "down"))
    layer = nn.Linear(down.shape[1], len(up))
    if up.dim() == 4:
        layer = nn.Conv2d(down.shape[1], len(up), down.shape[2])
    for one in case["lycoris"]:
        tensors = {"lora_up.weight": Parameter(up.clone()), "lora_down.weight": Parameter(down.clone())}
        module = Module("layer", layer, "locon", tensors, case["rank"], case["scale"], {}, Chance(7))
        assert module.change().norm().item() == pytest.approx(one["norm_before"], rel=1e-6)
        norms = limit_norms([module], one["max_norm"])
        assert (norms.scaled == 1) == one["scaled"]
        assert norms.mean == norms.largest == pytest.approx(one["returned_norm"], rel=1e-6)
        assert module.norm_scale == pytest.approx(one["scalar_after"], rel=1e-6)
        assert module.change().norm().item() == pytest.approx(one["norm_after"], rel=1e-6)
        saved = (module.tensors["lora_up.weight"] * module.norm_scale).sum().item()
        assert saved == pytest.approx(one["saved_up_sum"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_norm_ends_at_the_limit(kind: str):
    torch.manual_seed(0)
    module = made(kind, nn.Conv2d(24, 40, 3, padding=1))
    norms = limit_norms([module], 0.01)
    if module.algo in ("full", "ia3", "glora", "dylora"):
        assert norms == (0, 0.0, 0.0)
        return
    assert norms == (1, 0.01, 0.01)
    size = module.tensors["oft_blocks"] if "oft" in module.algo else module.change()
    assert size.norm().item() == pytest.approx(0.01, rel=1e-5)
    assert limit_norms([module], 0.02) == (0, pytest.approx(0.01), pytest.approx(0.01)), (
        "the mean is true without a change"
    )


# dropout


def dropping(kind: str, of: str, **drops: Any) -> tuple[nn.Module, Module]:
    torch.manual_seed(0)
    layer = LAYERS[of]()
    module = made(kind, layer, **drops)
    module.attach()
    return layer, module


def outputs(layer: nn.Module, module: Module, moments: int) -> list[Tensor]:
    """What the adapter adds in each of some micro-batches."""
    x, found = given(layer), []
    for update in range(moments):
        module.chance.moment = (update, 0)
        with torch.no_grad():
            found.append(layer(x) - run(layer, x, layer.weight, layer.bias))
    module.chance.moment = None
    return found


def undisturbed(layer: nn.Module) -> Tensor:
    x = given(layer)
    with torch.no_grad():
        return layer(x) - run(layer, x, layer.weight, layer.bias)


@pytest.mark.parametrize("kind", ["locon", "loha", "lokr", "full", "ia3", "diag-oft", "glora", "locon, DoRA"])
@pytest.mark.parametrize("of", ["linear", "3x3"])
def test_dropout_leaves_out_numbers_and_keeps_the_mean(kind: str, of: str):
    layer, module = dropping(kind, of, dropout=0.25)
    whole = undisturbed(layer)
    many = torch.stack(outputs(layer, module, 30))
    near = torch.isclose(many, torch.zeros(()), atol=1e-5)
    assert near.float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(many[~near], (whole / 0.75).expand_as(many)[~near], rtol=1e-3, atol=1e-4)


def test_rank_dropout_leaves_out_ranks_of_a_locon():
    layer, module = dropping("locon", "linear", rank_dropout=0.5)
    seen = set()
    for out in outputs(layer, module, 40):
        seen.add(torch.linalg.matrix_rank(out.flatten(0, 1), rtol=1e-4).item())
    assert seen == {0, 1, 2, 3, 4}


def test_rank_dropout_leaves_out_outputs_where_there_are_no_ranks():
    for kind in ("loha", "lokr", "full", "diag-oft"):
        layer, module = dropping(kind, "3x3", rank_dropout=0.25)
        whole = undisturbed(layer)
        still = []
        for out in outputs(layer, module, 20):
            gone = out.abs().amax(dim=(0, 2, 3)) < 1e-5
            torch.testing.assert_close(out[:, ~gone], whole[:, ~gone], rtol=1e-4, atol=1e-5)
            still.append(gone.float().mean().item())
        assert sum(still) / len(still) == pytest.approx(0.25, abs=0.06)


def test_rank_dropout_scale_keeps_the_sum_of_ranks():
    layer, module = dropping("locon", "linear", rank_dropout=0.5, rank_dropout_scale=True)
    for tensor in module.tensors.values():
        tensor.data.fill_(0.1)  # all ranks alike
    whole = undisturbed(layer)
    outs = outputs(layer, module, 10)
    assert any(torch.allclose(out, whole, atol=1e-5) for out in outs)
    assert all(torch.allclose(out, whole, atol=1e-5) or out.abs().max() < 1e-5 for out in outs)


def test_module_dropout_leaves_out_the_layers_adapter():
    layer, module = dropping("locon", "linear", module_dropout=0.25)
    gone = [not out.any() for out in outputs(layer, module, 200)]
    assert sum(gone) / len(gone) == pytest.approx(0.25, abs=0.08)


def test_dropout_depends_on_the_moment_and_the_layer_alone():
    layer, module = dropping("loha", "linear", dropout=0.5, rank_dropout=0.2, module_dropout=0.1)
    first = outputs(layer, module, 4)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, outputs(layer, module, 4), strict=True))
    module.name = "another"
    assert not all(torch.equal(a, b) for a, b in zip(first, outputs(layer, module, 4), strict=True))


def test_dylora_trains_one_block_of_ranks_at_a_time_and_all_in_the_end():
    torch.manual_seed(0)
    layer = nn.Linear(24, 40)
    module = made("dylora", layer, dim=6)
    module.attach()
    seen = set()
    for update in range(20):
        module.chance.moment = (update, 0)
        layer(given(layer)).sum().backward()
        trained = {name for name, tensor in module.tensors.items() if tensor.grad is not None and tensor.grad.any()}
        seen.add(tuple(sorted(trained)))
        for tensor in module.tensors.values():
            tensor.grad = None
    assert seen == {(f"lora_down.weight.{n}", f"lora_up.weight.{n}") for n in range(3)}
