"""q, k and v in one product are q, k and v, whatever the adapters' settings; and compiled blocks are blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

import lorabuild.nn.adapters.fused as fusing
from lorabuild.nn.adapters.chance import Chance
from lorabuild.nn.adapters.fused import fused
from lorabuild.nn.adapters.module import Module
from lorabuild.nn.compiled import compiled
from lorabuild.nn.lowrank import lowrank_linear, lowrank_linears

WIDTH, HEADS, TEXT = 48, 3, 40


def adapters(network: nn.Module, algo: str = "locon", ranks: tuple[int, ...] = (4,), **options: Any) -> list[Module]:
    """An adapter that has learnt something on each projection of the attentions in `network`."""
    chance, found, noise = Chance(7), [], torch.Generator().manual_seed(3)
    for number, (name, layer) in enumerate(
        (name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear) and "attn" in name
    ):
        out, into = layer.weight.shape
        rank = ranks[number % len(ranks)]
        tensors = {
            "lora_down.weight": torch.randn(rank, into, generator=noise, dtype=layer.weight.dtype) * 0.2,
            "lora_up.weight": torch.randn(out, rank, generator=noise, dtype=layer.weight.dtype) * 0.2,
        }
        if options.get("use_scalar"):
            tensors["scalar"] = torch.tensor(0.5 + number / 20)
        if options.get("dora_wd"):
            tensors["dora_scale"] = layer.weight.detach().norm(dim=0, keepdim=True)
        scale = 0.5 / rank**0.5 if options.get("rs_lora") else 2 / rank
        kept = {kind: Parameter(tensor) for kind, tensor in tensors.items()}
        found.append(Module(name, layer, algo, kept, rank, scale, options, chance))
    chance.moment = (0, 0)
    return found


def block(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Two blocks; in float64, so that another order of sums is told from another function."""
    torch.manual_seed(5)
    made = nn.ModuleList(
        [BasicTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, cross_attention_dim=TEXT) for _ in range(2)]
    )
    return made.to(dtype).requires_grad_(False)


def answers(
    blocks: nn.Module, modules: list[Module], batch: int = 2, tokens: int = 24, call: Any = None
) -> list[Tensor]:
    """The output, and the gradients of inputs and adapters."""
    noise = torch.Generator().manual_seed(9)
    dtype = next(blocks.parameters()).dtype
    x = torch.randn(batch, tokens, WIDTH, generator=noise, dtype=dtype, requires_grad=True)
    text = torch.randn(batch, 11, TEXT, generator=noise, dtype=dtype, requires_grad=True)
    y = x
    for one in blocks:
        y = call(one, y, None, text) if call else one(y, encoder_hidden_states=text)
    weights = [tensor for module in modules for tensor in module.tensors.values()]
    grads = torch.autograd.grad(y.square().sum(), [x, text, *weights], materialize_grads=True)
    return [y.detach(), *grads]


def close(found: list[Tensor], wanted: list[Tensor], bound: float = 1e-11) -> None:
    """Within `bound` of the largest number of each."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= bound * other.abs().max() + 1e-12


# q, k and v


def test_several_layers_in_one_node_are_each_by_itself():
    noise = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64, requires_grad=True)

    x, weights = random(2, 5, 16), random(3, 12, 16).detach()
    downs, ups = [random(4, 16) for _ in range(3)], [random(12, 4) for _ in range(3)]
    alone = [lowrank_linear(x, w, None, d, u, 0.3) for w, d, u in zip(weights, downs, ups, strict=True)]
    together = lowrank_linears(x, weights, downs, ups, 0.3)
    of = [x, *downs, *ups]
    grads = [
        torch.autograd.grad(sum((out * (n + 1)).cos().sum() for n, out in enumerate(outs)), of)
        for outs in (alone, together)
    ]
    close([*together, *grads[1]], [*alone, *grads[0]])


SETTINGS = [
    {},
    {"rs_lora": True},
    {"use_scalar": True},
    {"rank_dropout": 0.5, "rank_dropout_scale": True},
]
APART = [
    {"dropout": 0.3},
    {"module_dropout": 0.6},
    {"dora_wd": True},
    {"ranks": (4, 2)},
]


def test_in_float32_it_differs_by_rounding():
    blocks = block(torch.float32)
    modules = adapters(blocks)
    for module in modules:
        module.attach()
    wanted = answers(blocks, modules)
    for one in fused(blocks, modules):
        one.attach()
    close(answers(blocks, modules), wanted, 1e-5)


@pytest.mark.parametrize("options", SETTINGS + APART, ids=str)
def test_fused_attention_is_attention(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Where its layers have a product each of one rank it is one product, else each goes its own way."""
    counted: list[int] = []

    def counting(x: Tensor, weights: Tensor, *rest: Any) -> Any:
        counted.append(len(weights))
        return lowrank_linears(x, weights, *rest)

    monkeypatch.setattr(fusing, "lowrank_linears", counting)
    blocks = block()
    modules = adapters(blocks, **options)
    for module in modules:
        module.attach()
    wanted = answers(blocks, modules)
    attentions = [*fused(blocks, modules)]
    assert len(attentions) == 4
    for one in attentions:
        one.attach()
    close(answers(blocks, modules), wanted)
    if options in SETTINGS:
        assert counted == [3, 2] * 2  # q, k, v of the picture; k, v of the text
    elif "module_dropout" in options:
        assert sum(counted) < 10  # a layer that is left out keeps its attention from it
    else:
        assert counted == []
    modules[1].norm_scale = 0.5  # scale_weight_norms gives each layer a scale of its own
    scaled = answers(blocks, modules)
    for one in attentions:
        one.detach()
    close(scaled, answers(blocks, modules))
    assert "forward" not in vars(blocks[0].attn1)


def test_an_attention_that_is_not_sdxls_or_not_all_adapted_is_left_alone():
    plain = nn.ModuleDict({"attn": Attention(WIDTH, heads=HEADS, dim_head=16, residual_connection=True)})
    assert not [*fused(plain, adapters(plain))]
    plain = nn.ModuleDict({"attn": Attention(WIDTH, heads=HEADS, dim_head=16)})
    assert len([*fused(plain, adapters(plain))]) == 1
    assert not [*fused(plain, adapters(plain)[1:])]
    assert not [*fused(plain, adapters(plain, algo="loha"))]


def test_under_autocast_it_is_in_bf16_and_a_small_change_is_not_rounded_away():
    """Of a thousandth of the base's: 1 % of what it does in float32 may be lost, as with each layer by itself."""
    blocks = block(torch.float32)
    modules = adapters(blocks)
    noise = torch.Generator().manual_seed(2)
    x, weights = torch.randn(64, 8, WIDTH, generator=noise), torch.stack([m.weight for m in modules[:3]])
    downs, ups = zip(*map(_thin, modules[:3]), strict=True)
    scale = 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        outs = lowrank_linears(x, weights, downs, ups, scale)
        plain = lowrank_linears(x, weights, downs, ups, 0.0)
    for out, without, down, up in zip(outs, plain, downs, ups, strict=True):
        assert out.dtype == torch.bfloat16
        wanted = (x @ down.t() @ up.t() * scale).flatten()
        arrived = (out.float() - without.float()).flatten()
        assert (arrived @ wanted / wanted.square().sum()).item() == pytest.approx(1, abs=0.05)


def _thin(module: Module) -> tuple[Tensor, Tensor]:
    return module.tensors["lora_down.weight"], module.tensors["lora_up.weight"]


# compiled


@pytest.fixture
def counter() -> CompileCounterWithBackend:
    """It traces and counts, and runs what it traced without a compiler."""
    return CompileCounterWithBackend("eager")


@pytest.mark.parametrize("together", [False, True])
def test_blocks_are_compiled_once_for_all_sizes_and_micro_batches(together: bool, counter: CompileCounterWithBackend):
    """And once more for batches of one, which are a shape of their own to the compiler."""
    blocks = block()
    modules = adapters(blocks)
    for one in [*modules, *(fused(blocks, modules) if together else ())]:
        one.attach()
    sizes = [(2, 24), (2, 40), (3, 16), (1, 24), (1, 30)]
    wanted = [answers(blocks, modules, *size) for size in sizes]
    told: list[str] = []
    counts = []
    with compiled(blocks, told.append, backend=counter):
        counter.clear()  # of the trial
        for number, size in enumerate(sizes):
            modules[0].chance.moment = (number, 0)
            close(answers(blocks, modules, *size), wanted[number])
            counts.append(counter.frame_count)
        with torch.no_grad():  # a measurement is not compiled
            blocks[0](torch.ones(5, 7, WIDTH).double(), encoder_hidden_states=torch.ones(5, 3, TEXT).double())
        close(answers(blocks, modules, call=_checkpointed), wanted[0])
        assert counter.frame_count == counts[-1]
    assert counts == [1, 1, 1, 2, 2] and not told
    assert "forward" not in vars(blocks[0])


def _checkpointed(one: nn.Module, *args: Any) -> Tensor:
    return checkpoint(one, *args, use_reentrant=False)


def test_a_machine_without_a_compiler_is_one_warning():
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler here\nand more")

    blocks, told = block(torch.float32), []
    with compiled(blocks, told.append, backend=broken):
        assert "forward" not in vars(blocks[0])
        blocks[0](torch.ones(2, 7, WIDTH), encoder_hidden_states=torch.ones(2, 3, TEXT)).sum()
    assert len(told) == 1 and "torch_compile" in told[0] and "no compiler here" in told[0] and "\n" not in told[0]


def test_under_autocast_a_block_is_one_graph_too(counter: CompileCounterWithBackend):
    """As a real training has it: base in bf16, adapter in float32. Where the compiler gives up, there are more."""
    blocks = block(torch.float32)
    modules = adapters(blocks)
    for one in [*modules, *fused(blocks, modules)]:
        one.attach()
    with torch.autocast("cpu", torch.bfloat16), compiled(blocks, lambda text: None, backend=counter):
        counter.clear()
        for batch in (2, 3):
            answers(blocks, modules, batch)
        assert counter.frame_count == 1
