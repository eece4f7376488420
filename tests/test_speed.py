"""What makes a step fast on a GPU and changes nothing: held here by what a processor can see of it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_base import RECIPE, dataset, latents, tiny_base
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lorabuild.lora.adapter_shape import Shape
from lorabuild.lora.adapter_tensors import layout
from lorabuild.nn.adapter import Adapter, adapted
from lorabuild.nn.adapters.chance import Chance
from lorabuild.nn.adapters.module import Module
from lorabuild.nn.applied import bare
from lorabuild.nn.batches import Data
from lorabuild.nn.trainer import Training, _Loop
from lorabuild.training.compiling import to_compile

SOME = [(0, [(0, 0), (2, 0)]), (0, [(3, 0)])]
MORE = [(0, [(1, 0)]), (0, [(4, 0), (4, 1)])]


def loop_on(adapter: Adapter, recipe: dict[str, Any]) -> _Loop:
    return _Loop(Training(tiny_base(), adapter, Data(dataset(), latents().__getitem__), recipe))


# what waits for the device


class Reads(TorchDispatchMode):
    """Where a number of a tensor is asked for: on a GPU each such place waits until all that was begun is done."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def note(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if "lorabuild" in frame.filename]
        self.places.append(f"{frames[-1].name}: {frames[-1].line}" if frames else "?")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] in self.WAITING:
            self.note()
        return func(*args, **(kwargs or {}))


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """Also by what takes a whole tensor to Python, which on a processor is no operation."""
    found = Reads()
    with monkeypatch.context() as patches, found:
        for name in ("tolist", "numpy", "cpu", "__array__"):
            plain = getattr(Tensor, name)

            def asked(self: Tensor, *args: Any, _plain: Any = plain, **kwargs: Any) -> Any:
                found.note()
                return _plain(self, *args, **kwargs)

            patches.setattr(Tensor, name, asked)
        yield found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer_type": "ClybW", "optimizer_args": {}, "noise_offset": 0.1, "min_snr_gamma": 5.0},
        {
            "network_args": RECIPE["network_args"]
            | {"rank_dropout": 0.3, "rank_dropout_scale": True, "dropout": 0.1, "module_dropout": 0.3, "dora_wd": True},
            **{"mixed_precision": "bf16", "loss_type": "huber", "weighted_captions": True},
        },
    ],
)
def test_an_update_of_several_micro_batches_reads_from_the_device_once(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    recipe = RECIPE | changes
    with adapted(tiny_base(), Shape.of(recipe), recipe["seed"], ("te", "unet")) as adapter:
        loop = loop_on(adapter, recipe)
        loop.update(SOME, MORE)  # the optimizer makes its state
        with reads(monkeypatch) as found:
            loop.update(MORE, SOME)
    assert len(found.places) == 1 and "tolist" in found.places[0], found.places


# what is made ahead


def test_a_batch_that_is_made_ahead_changes_no_byte():
    """Nor does one that was made for an update that then is another."""
    found = []
    for coming in (MORE, (), SOME):
        with adapted(tiny_base(), Shape.of(RECIPE), RECIPE["seed"], ("unet",)) as adapter:
            loop = loop_on(adapter, RECIPE)
            loop.update(SOME, coming)
            assert (loop.feed.ahead is None) == (not coming)
            loop.update(MORE)
            found.append(
                (loop.log, torch.cat([weights.detach().flatten() for weights in adapter.parameters().values()]))
            )
    for log, weights in found[1:]:
        assert log == found[0][0]
        assert torch.equal(weights, found[0][1])


# how convolutions lie in memory


@pytest.mark.parametrize("algo", ["locon", "loha"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_gives_the_same_in_the_layout_of_gpus_and_stays_in_it(algo: str, kernel: int):
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 6, 10, generator=noise, dtype=torch.float64)
    layer = torch.nn.Conv2d(16, 24, kernel, padding=kernel // 2, dtype=torch.float64)
    starts = layout(algo, tuple(layer.weight.shape), 4, {})
    tensors = {
        kind: torch.nn.Parameter(torch.randn(start.shape, generator=noise, dtype=torch.float64))
        for kind, start in starts.items()
    }
    Module("conv", layer, algo, tensors, 4, 0.5, {}, Chance(1)).attach()
    plain = layer(x)
    wanted = torch.autograd.grad(plain.sin().sum(), [*tensors.values()])
    layer.to(memory_format=torch.channels_last)
    found = layer(x)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(torch.autograd.grad(found.sin().sum(), [*tensors.values()]), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# attention


def test_every_attention_is_one_that_flash_kernels_take(monkeypatch: pytest.MonkeyPatch):
    """q, k and v of one dtype, half, without a mask (the text's is causal) and dense in their last side."""
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def attend(*qkv: Tensor, attn_mask: Any = None, **more: Any) -> Tensor:
        seen.append(attn_mask is None and all(one.dtype is torch.bfloat16 and one.stride(-1) == 1 for one in qkv))
        return plain(*qkv, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    recipe = RECIPE | {"mixed_precision": "bf16"}
    base = tiny_base(torch.bfloat16)
    with adapted(base, Shape.of(recipe), recipe["seed"], ("te", "unet")) as adapter:
        loop = _Loop(Training(base, adapter, Data(dataset(), latents().__getitem__), recipe))
        loop.update(SOME[:1])
    assert len(seen) == 2 * 70 + 12 + 32 and all(seen)


# what is compiled


def test_a_training_is_compiled_on_a_gpu_where_it_is_long_and_nothing_changes_from_layer_to_layer():
    recipe = RECIPE | {"max_train_steps": 80, "train_batch_size": 16, "gradient_accumulation_steps": 6}
    args = RECIPE["network_args"]
    assert to_compile(None, recipe, "cuda")
    assert not to_compile(None, recipe, "cpu") and not to_compile(True, recipe, "cpu")
    assert not to_compile(False, recipe, "cuda")
    assert not to_compile(None, recipe | {"max_train_steps": 8}, "cuda")
    assert to_compile(True, recipe | {"max_train_steps": 8}, "cuda")
    for key, value in {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1, "algo": "dylora"}.items():
        assert not to_compile(True, recipe | {"network_args": args | {key: value}}, "cuda")
    assert not to_compile(True, recipe | {"scale_weight_norms": 1.0}, "cuda")
    assert not to_compile(None, recipe | {"network_args": args | {"algo": "loha"}}, "cuda")


def test_a_fused_adapter_predicts_as_one_that_is_not_and_comes_off_the_base():
    base, recipe = tiny_base(), RECIPE
    noise = torch.Generator().manual_seed(3)
    x, text, pooled = (torch.randn(size, generator=noise) for size in [(2, 4, 8, 8), (2, 77, 192), (2, 112)])
    text, pooled = text[..., : base.unet.config.cross_attention_dim], pooled[:, : base.te2.config.projection_dim]

    @torch.no_grad()
    def predicted() -> Tensor:
        conditions = {"text_embeds": pooled, "time_ids": torch.ones(2, 6)}
        return base.unet(x, torch.tensor([5, 700]), text, added_cond_kwargs=conditions).sample

    alone, found = predicted(), []
    for fuse in (False, True):
        with adapted(base, Shape.of(recipe), recipe["seed"], ("unet",), fuse=fuse) as adapter, torch.no_grad():
            for name, weights in adapter.parameters().items():
                if "lora_up" in name:
                    weights.fill_(0.01)
            found.append(predicted())
            with bare(base):
                assert torch.equal(predicted(), alone)
        assert torch.equal(predicted(), alone)
    assert not torch.allclose(found[0], alone, atol=1e-2)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-5)
