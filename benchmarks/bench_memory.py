"""Reckon the device memory of a training step of a full-width SDXL, without a GPU: `python benchmarks/bench_memory.py`.

The very code of a training (trainer, adapter, checkpointing, autocast, optimizer) runs on tensors that have shapes and no
numbers. Each storage that it makes is counted while somebody holds it, in blocks of 512 bytes as CUDA's allocator has them.
So the peak is of what PyTorch has *allocated*: the CUDA context, libraries' workspaces, and what the allocator loses
between its blocks come on top. It is reckoned, not measured on a GPU.

Prints a row for each setting: the peak of an update when the optimizer has its moments; what it consists of;
and the estimate of `lorabuild.training.memory`, which is held to it.
"""

from __future__ import annotations

import argparse
import json
import tomllib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from sdxl_shapes import UNET, WIDTH
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lorabuild.lora.adapter_shape import Shape, trained_parts
from lorabuild.lora.presets import TEXT_PARTS
from lorabuild.nn import feed, trainer
from lorabuild.nn.adapter import adapted
from lorabuild.nn.base import DTYPES, Base, checkpointing
from lorabuild.nn.batches import Data
from lorabuild.nn.tiny import CONFIGS
from lorabuild.training.memory import RESERVE, Model, needs
from lorabuild.training.order import micro_batches

BLOCK = 512  # bytes: CUDA's caching allocator rounds up to it
NORMS = (nn.GroupNorm, nn.LayerNorm)
IN_FLOAT = ("group_norm", "layer_norm")  # autocast computes them in float32 on a GPU, not on a CPU
START, END, VOCABULARY = 49406, 49407, 49408
CELL = 8  # pixels a side of a latent's cell

# What the rows differ from, in sd-scripts' names; beside them `resolution` and `gradient_checkpointing`.
PLAIN: dict[str, Any] = {
    "network_dim": 16,
    "network_alpha": 8.0,
    "network_args": {"algo": "locon", "preset": "full", "conv_dim": 8, "conv_alpha": 4.0},
    "optimizer_type": "AdamW",
    "optimizer_args": {},
    "unet_lr": 1e-4,
    "text_encoder_lr": 0.0,
    "lr_scheduler": "constant",
    "lr_scheduler_args": {},
    "lr_warmup_steps": 0,
    "max_train_steps": 10,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "multires_noise_iterations": 0,
    "mixed_precision": "bf16",
    "max_grad_norm": 1.0,
    "seed": 1,
    "resolution": [1024, 1024],
    "gradient_checkpointing": True,
}
GUIDE = {"network_dim": 8, "network_args": {"algo": "locon", "preset": "full", "conv_dim": 256, "conv_alpha": 4.0}}
BOTH = {"text_encoder_lr": 1e-4}
SCHNELL = {**GUIDE, **BOTH, "optimizer_type": "ClybW", "train_batch_size": 8, "gradient_accumulation_steps": 6}
LOHA = {"algo": "loha", "preset": "full", "conv_dim": 8}
DORA = {**PLAIN["network_args"], "dora_wd": True}
RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def recipe(name: str) -> dict[str, Any]:
    """A recipe's settings, as a row has them."""
    read = tomllib.loads((RECIPES / f"{name}.toml").read_text())
    return {**read["recipe"], "resolution": read["dataset"]["resolution"]}


ROWS: dict[str, dict[str, Any]] = {
    "recipes/8gb.toml": recipe("8gb"),
    "rank 16": {},
    "batch 4": {"train_batch_size": 4},
    "768 x 768": {"resolution": [768, 768]},
    "with text encoders": BOTH,
    "with text encoders, batch 4": {**BOTH, "train_batch_size": 4},
    "no checkpointing": {"gradient_checkpointing": False},
    "no checkpointing, batch 2": {"gradient_checkpointing": False, "train_batch_size": 2},
    "guide's ranks": GUIDE,
    "guide's ranks, no checkpointing": {**GUIDE, "gradient_checkpointing": False},
    "schnell": {**SCHNELL, "gradient_checkpointing": False},
    "schnell, checkpointing": SCHNELL,
    "schnell, checkpointing, batch 1": {**SCHNELL, "train_batch_size": 1},
    "loha": {"network_args": LOHA},
    "loha, no checkpointing": {"network_args": LOHA, "gradient_checkpointing": False},
    "dora": {"network_args": DORA},
    "dora, no checkpointing": {"network_args": DORA, "gradient_checkpointing": False},
    "lokr, no checkpointing": {"network_args": {"algo": "lokr", "preset": "full", "factor": 8}, "gradient_checkpointing": False},
    "fp32": {"mixed_precision": "no"},
    "fp32, no checkpointing": {"mixed_precision": "no", "gradient_checkpointing": False},
}  # fmt: skip


@dataclass(frozen=True)
class Reckoned:
    """Bytes that are allocated at the peak, in all and by what they are."""

    peak: int
    parts: Mapping[str, int]
    largest: Sequence[tuple[str, int]]  # what makes the activations -> bytes, the most first
    model: Model | None = None  # what it is of; text encoders that are not on the device have no numbers


class Ledger(TorchDispatchMode):
    """What is allocated: every storage that an operation makes, until the last tensor on it is gone.

    `made` says what is being made. What there is at the peak is worked out when the next storage goes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = "activations"
        self._live: dict[int, tuple[int, str, str]] = {}  # storage -> bytes, what it is, operation
        self._total = 0
        self.forget()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in tree_iter(found):
            if isinstance(one, Tensor) and not one.is_meta:
                self._see(one, str(func))
        return found

    def forget(self) -> None:
        """Look for the peak from now on."""
        self._peak, self._at_peak, self._told = 0, {}, True

    def called(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Say what these tensors are: they were made as something else."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._live:
                size, _, made_by = self._live[key]
                self._live[key] = size, what, made_by

    def reckoned(self) -> Reckoned:
        self._tell()
        parts: Counter[str] = Counter()
        makers: Counter[str] = Counter()
        for size, what, made_by in self._at_peak.values():
            parts[what] += size
            if what == "activations":
                makers[f"{made_by.removesuffix('.default')} {size / 1e6:.1f} MB"] += size
        return Reckoned(self._peak, dict(parts), makers.most_common(12))

    def _see(self, tensor: Tensor, made_by: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._live[key] = size, self.made, made_by
        weakref.finalize(storage, self._gone, key)
        self._total += size
        if self._total > self._peak:
            self._peak, self._told = self._total, False

    def _gone(self, key: int) -> None:
        if not self._told and self._total == self._peak:
            self._tell()
        self._total -= self._live.pop(key)[0]

    def _tell(self) -> None:
        if not self._told:
            self._at_peak, self._told = dict(self._live), True


def reckon(settings: Mapping[str, Any], unet: Mapping[str, Any] = UNET) -> Reckoned:
    """The peak of an update of these settings (as PLAIN, whose others hold), of an SDXL with this U-Net."""
    recipe = {**PLAIN, **settings}
    dtype, ledger = DTYPES[recipe["mixed_precision"]], Ledger()
    learns_text = any(part in TEXT_PARTS for part in trained_parts(recipe))
    with FakeTensorMode(), as_on_a_gpu(), ledger, ExitStack() as stack:
        ledger.made = "U-Net"
        network = filled(lambda: _unet(unet), dtype)
        ledger.made = "text encoders"
        encoders = [filled(lambda name=name: _clip(name), dtype) if learns_text else None for name in TEXT_PARTS]
        base = Base(network, *encoders, Tokenizer(), Tokenizer())
        if not learns_text:
            stack.enter_context(patch.object(feed, "TextAhead", lambda *args: Encoded(dtype)))
        stack.enter_context(checkpointing(base, recipe["gradient_checkpointing"]))
        ledger.made = "adapter"
        adapter = stack.enter_context(adapted(base, Shape.of(recipe), 1, trained_parts(recipe)))
        ledger.made = "activations"
        data = data_of(recipe)
        loop = trainer._Loop(trainer.Training(base, adapter, data, recipe))
        dealt = micro_batches(data.images, recipe["train_batch_size"], 1)
        update = list(
            islice(dealt, min(2, recipe["gradient_accumulation_steps"]))
        )  # a third finds what the second does
        ledger.called("adapter", [loop.flat.numbers])  # where the trainer has laid its parameters, and their gradients
        ledger.called("gradients", [loop.flat.gradients])
        loop.optimizer.step()  # nothing is learnt: afterwards it has all that it keeps
        moments = [one for state in loop.optimizer.state.values() for one in state.values() if isinstance(one, Tensor)]
        ledger.called("optimizer", moments)
        ledger.forget()
        loop.update(update)
        networks = {"unet": network} | {name: one for name, one in zip(TEXT_PARTS, encoders, strict=True) if one}
        whole = sum(module.weight.numel() for module in adapter.modules.values() if module.makes_whole)
        counts = {name: numbers(one.parameters()) for name, one in networks.items()}
        model = Model(counts, unet["block_out_channels"][0], numbers(loop.flat.parameters), whole)
        return replace(ledger.reckoned(), model=model)


def numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def filled(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """A network with weights, as lorabuild.nn.base loads it: its norms are in float32."""
    with torch.device("meta"):
        network = make().requires_grad_(False).eval()
    norms = {name for name, module in network.named_modules() if isinstance(module, NORMS)}
    kinds = {name: torch.float32 if name.rpartition(".")[0] in norms else dtype for name in network.state_dict()}
    weights = {name: torch.empty(one.shape, dtype=kinds[name]) for name, one in network.state_dict().items()}
    network.load_state_dict(weights, assign=True)
    for module in network.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return network.requires_grad_(False)


def data_of(recipe: Mapping[str, Any]) -> Data:
    """As many pictures of one size as an update takes."""
    width, height = recipe["resolution"]
    image = {"repeats": 1, "caption": "a", "bucket": [width, height], "size": [width, height]}
    count = recipe["train_batch_size"] * recipe["gradient_accumulation_steps"]
    images = [{**image, "digest": f"{n:032x}", "resized": [width, height], "crop": [0, 0]} for n in range(count)]
    settings = {"flip_aug": False, "shuffle_caption": False, "caption_separator": ",", "keep_tokens": 0}
    return Data({"settings": settings, "images": images}, lambda name: torch.empty(4, height // CELL, width // CELL))


class Tokenizer:
    """One that makes of every text the same few tokens."""

    bos_token_id, eos_token_id = START, END

    def __call__(self, captions: Sequence[str], **settings: Any) -> Any:
        return SimpleNamespace(input_ids=[[START, 5, END]] * len(captions))


class Encoded:
    """In place of text encoders that are not on the device: what `TextAhead` brings there."""

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        hidden = torch.empty(len(captions), 77, WIDTH["te1"] + WIDTH["te2"], dtype=self._dtype)
        return hidden, torch.empty(len(captions), WIDTH["te2"], dtype=self._dtype)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Norms in float32 under autocast; and where code asks for numbers or addresses, an answer that fits."""

    def in_float(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def computed(*args: Any, **kwargs: Any) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                args = tuple(one.float() if isinstance(one, Tensor) else one for one in args)
                kwargs = {key: one.float() if isinstance(one, Tensor) else one for key, one in kwargs.items()}
            return norm(*args, **kwargs)

        return computed

    def address(storage: Any) -> int:
        return storage._cdata * 2**20

    def place(tensor: Tensor) -> int:
        return address(tensor.untyped_storage()) + tensor.storage_offset() * tensor.element_size()

    with ExitStack() as stack:
        for name in IN_FLOAT:
            stack.enter_context(patch.object(nn.functional, name, in_float(getattr(nn.functional, name))))
        stack.enter_context(patch.object(Tensor, "item", lambda tensor: 1.0))
        stack.enter_context(patch.object(Tensor, "tolist", lambda tensor: [1.0] * tensor.numel()))
        stack.enter_context(patch.object(Tensor, "data_ptr", place))
        stack.enter_context(patch.object(torch.UntypedStorage, "data_ptr", address))
        yield


def _unet(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(dict(config))


def _clip(name: str) -> nn.Module:
    import transformers

    heads = {"te1": 12, "te2": 20}[name]
    config = CONFIGS[{"te1": "text_encoder", "te2": "text_encoder_2"}[name]]
    width = WIDTH[name]
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    whole = {**config, **shape, "num_attention_heads": heads, "vocab_size": VOCABULARY}
    return getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig(**whole))


def estimated(settings: Mapping[str, Any], model: Model) -> int:
    """What a user is told for a row, without what is set aside for workspaces."""
    recipe = {**PLAIN, **settings}
    width, height = recipe["resolution"]
    return sum(needs(recipe, model, width * height).values()) - RESERVE


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--row", nargs="*", default=list(ROWS), help="rows by name; all without")
    arguments.add_argument("--set", default="{}", help="JSON of settings that are over those of each row")
    arguments.add_argument("--largest", action="store_true", help="which operations made the activations")
    options = arguments.parse_args()
    for name in options.row:
        settings = {**ROWS[name], **json.loads(options.set)}
        found = reckon(settings)
        parts = {what: round(size / 1e9, 3) for what, size in sorted(found.parts.items()) if size}
        guess = round(estimated(settings, found.model) / 1e9, 3)
        told = {"row": name, "GB": round(found.peak / 1e9, 3), "estimate": guess, "parts": parts}
        print(json.dumps({**told, "settings": settings, "model": asdict(found.model)}), flush=True)
        for made_by, size in found.largest if options.largest else ():
            print(f"    {size / 1e9:6.3f}  {made_by}")


if __name__ == "__main__":
    main()
