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
from lorabuild.nn.adapter import Adapter, adapted
from lorabuild.nn.batches import Data
from lorabuild.nn.trainer import Training, _Loop

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
            assert (loop.ahead is None) == (not coming)
            loop.update(MORE)
            found.append(
                (loop.log, torch.cat([weights.detach().flatten() for weights in adapter.parameters().values()]))
            )
    for log, weights in found[1:]:
        assert log == found[0][0]
        assert torch.equal(weights, found[0][1])
