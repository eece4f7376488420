"""Estimate what a training takes of its device's memory, and say what would make it fit. Reckoned, not measured on a GPU.

The numbers are fitted to what `benchmarks/bench_memory.py` reckons for SDXL's widths; a test holds them to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lorabuild.tomltext import written

GB = 1e9
CELL = 8  # pixels a side of a latent's cell
SDXL_WIDTH = 320  # channels of the U-Net's first level, which the numbers below are of
BYTES = {"no": 4, "bf16": 2, "fp16": 2}  # of a number of the base
TRAINED = 4  # bytes of a number of the adapter and of its gradient: float32 always
RESERVE = 300_000_000  # libraries' workspaces, and what the allocator loses between blocks: a guess, no GPU was at hand
CONTEXT = 500_000_000  # CUDA itself, before anything is allocated

# Bytes that an optimizer keeps of each number; 8 bits of bitsandbytes have a scale for each block besides.
MOMENTS = 8
STATES = {
    **dict.fromkeys(("Lion", "SGDNesterov", "SGDScheduleFree"), 4),
    **dict.fromkeys(("AdamW8bit", "PagedAdamW8bit"), 2),
    **dict.fromkeys(("Lion8bit", "PagedLion8bit", "SGDNesterov8bit", "Adafactor"), 1),
    **dict.fromkeys(("DAdaptation", "DAdaptAdamPreprint", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptSGD"), 12),
    **dict.fromkeys(("DAdaptAdan", "DAdaptAdanIP"), 20),
    "Prodigy": 16,
}
EIGHT_BITS = "AdamW8bit"


@dataclass(frozen=True)
class Held:
    """Bytes of activations: what is kept for the backward pass, or with checkpointing the largest block and what each
    block begins with."""

    cell: float  # for each cell of the latents of a batch
    single: float  # times as much where the base is in float32
    whole: float  # for each number of a layer's weight whose change is made whole


PLAIN, CHECKPOINTED = Held(560_000, 1.52, 2.85), Held(71_500, 1.27, 0.16)
TEXT = 150_000_000  # for each caption of a batch, of text encoders that are trained


@dataclass(frozen=True)
class Model:
    """What memory hangs on. `networks`: parameters of unet, te1 and te2; `width`: of the U-Net's first level.

    `parameters` of the adapter are trained; `whole`: the numbers of layers whose change is made whole at each step.
    """

    networks: Mapping[str, int]
    width: int
    parameters: int
    whole: int


def needs(recipe: Mapping[str, Any], model: Model, pixels: int) -> dict[str, int]:
    """What takes how many bytes where a training needs most: its sum is the need.

    `recipe`: its settings, with `gradient_checkpointing`; `pixels`: of the largest bucket. Text encoders that are frozen
    are not on the device while it trains. Pictures that are drawn on the way are not counted.
    """
    number, trained = BYTES[recipe["mixed_precision"]], model.parameters
    text = sum(count for name, count in model.networks.items() if name != "unet") if learns_text(recipe) else 0
    found = {
        "U-Net": model.networks["unet"] * number,
        "text encoders": text * number,
        "adapter": trained * TRAINED,
        "gradients": trained * TRAINED,  # all in one line, from the first backward pass to the last
        "optimizer": trained * STATES.get(recipe["optimizer_type"], MOMENTS),
        "activations": _activations(recipe, model, pixels),
        "workspaces": RESERVE,
    }
    return {what: size for what, size in found.items() if size}


def learns_text(recipe: Mapping[str, Any]) -> bool:
    """Whether a text encoder is trained."""
    rates = recipe.get("text_encoder_lr") or 0.0
    return any(rates) if isinstance(rates, list | tuple) else bool(rates)


def _activations(recipe: Mapping[str, Any], model: Model, pixels: int) -> int:
    batch, held = recipe["train_batch_size"], CHECKPOINTED if recipe.get("gradient_checkpointing") else PLAIN
    found = batch * pixels / CELL**2 * held.cell * model.width / SDXL_WIDTH
    if learns_text(recipe):
        found += batch * TEXT
    return round(found * (held.single if recipe["mixed_precision"] == "no" else 1) + model.whole * held.whole)


def said(need: Mapping[str, int], free: int | None = None) -> str:
    """`needs about 7.2 GB of device memory (U-Net 5.1, activations 1.2, workspaces 0.3, …); 22.0 GB are free`"""
    parts = sorted(need.items(), key=lambda one: -one[1])
    told = ", ".join(f"{what} {size / GB:.1f}" for what, size in parts if size >= GB / 20)
    there = "" if free is None else f"; {free / GB:.1f} GB are free"
    return f"needs about {sum(need.values()) / GB:.1f} GB of device memory ({told}){there}"


def remedy(recipe: Mapping[str, Any], model: Model, pixels: int, free: int) -> str:
    """The fewest changes, those that cost least first, by which a training fits into `free` bytes, in a sentence."""
    changes = list(_changes(recipe))
    for count in range(1, len(changes) + 1):
        for chosen in combinations(changes, count):
            changed = {**recipe, **{key: setting for one in chosen for key, setting in one.items()}}
            if sum(needs(changed, model, pixels).values()) <= free:
                told = ", ".join(f"{key} = {written(setting)}" for one in chosen for key, setting in one.items())
                return f"it would fit with {told}"
    return "no key of [recipe] makes it fit: a lower resolution or network_dim, or a larger card"


def _changes(recipe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes that save memory: those that leave the result as it is first, those that learn less last."""
    batch, accumulation = recipe["train_batch_size"], recipe["gradient_accumulation_steps"]
    if not recipe.get("gradient_checkpointing"):
        yield {"gradient_checkpointing": True}
    for part in sorted(part for part in range(1, batch) if batch % part == 0)[::-1]:
        yield {"train_batch_size": part, "gradient_accumulation_steps": accumulation * (batch // part)}
    if recipe["mixed_precision"] == "no":
        yield {"mixed_precision": "bf16"}
    if STATES.get(recipe["optimizer_type"], MOMENTS) > STATES[EIGHT_BITS]:
        yield {"optimizer_type": EIGHT_BITS}
    if learns_text(recipe) and recipe.get("unet_lr"):
        yield {"text_encoder_lr": 0}
