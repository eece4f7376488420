"""What a base must show before it may be shipped: a table, and whether all of it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorabuild.lora.adapter_shape import Shape
from lorabuild.names import block_of
from lorabuild.nn.adapter import Adapter, adapted
from lorabuild.nn.base import Base, load_text_encoders, load_tokenizers, load_unet
from lorabuild.nn.noise import generator
from lorabuild.nn.objective import STEPS as TIMESTEPS
from lorabuild.nn.packed import write_packed
from lorabuild.nn.sampler import draw
from lorabuild.nn.vae import load_vae
from lorabuild.streams import python_random
from toy.captions import caption, full_caption, stranger_caption
from toy.colors import background_color, body_color
from toy.configs import SIZE
from toy.levels import BLOCKS, LEVEL2, bypassed
from toy.pictures import plain, strange_style, stranger
from toy.pool import as_input, pixels_of, validation
from toy.sampled import sampled
from toy.text import conditions
from toy.traits import HELD_STYLES, Picture
from toy.unet import Samples, errors, held_errors, rise
from toy.unet import validation as loss_of
from toy.vae import encoded

SEED = 1  # of everything here; a training has another
TEXT_TOKENS = 77
LORA = {"network_dim": 8, "network_alpha": 8, "unet_lr": 2e-3}
LORA_PICTURES, LORA_BATCH, LORA_UPDATES, WARMUP = 10, 20, 40, 8
HELD_PICTURES, HELD_DRAWS = 24, 4


Caption = Callable[[Picture, int], str]  # of a picture and its number


def _caption(picture: Picture, number: int, left_out: float = 0.05) -> str:
    return caption(picture, python_random(SEED, "caption", number), left_out)


def _whole(picture: Picture, number: int) -> str:
    """With all tags, in any order: the style's, too."""
    return _caption(picture, number, 0.0)


# What LoRAs are trained on: name -> (picture of a number, its caption).
SUBJECTS: dict[str, tuple[Callable[[int], Picture], Caption]] = {
    "ember": (lambda number: stranger(SEED, number), lambda one, number: stranger_caption(one)),
    **{style: (lambda number, style=style: strange_style(style, SEED, number), _whole) for style in HELD_STYLES[:1]},
}


@dataclass(frozen=True)
class Line:
    """One figure: `passed` is None where it is only told."""

    what: str
    figure: str
    bound: str = ""
    passed: bool | None = None


@dataclass(frozen=True)
class Effort:
    """How much is measured; the defaults are the gate's, less is for tests."""

    captions: int = 60
    held: int = 256
    updates: int = LORA_UPDATES
    steps: int = 20
    drawn: int = 6


Show = Callable[[str, Sequence[np.ndarray]], None]  # name, rows [N, side, side, 3] of as many pictures each


def gate(asset: Path, folder: Path, log: Callable[[str], None], show: Show, effort: Effort) -> bool:
    """Unpack `asset` into `folder` and measure it; True if all bounds hold. `log` gets the table, line by line.

    `show` gets what a person should look at: figures do not say whether a subject can be seen.
    """
    passed = True
    write_packed(asset, folder)
    base = Base(load_unet(folder, torch.float32), *load_text_encoders(folder, torch.float32), *load_tokenizers(folder))
    vae = load_vae(folder)
    for line in measured(base, vae, effort, show):
        mark = {None: " ", True: "+", False: "-"}[line.passed]
        log(f"{mark} {line.what:<58}{line.figure:>10}  {line.bound}")
        passed = passed and line.passed is not False
    return passed


def measured(base: Base, vae: Any, effort: Effort, show: Show) -> Iterator[Line]:
    """All figures, each as soon as it is there."""
    yield from _adherence(base, vae, effort, show)
    yield from _levels(base, vae, effort)
    yield _speed(base, vae, effort)
    yield from _loras(base, vae, effort, show)


def _above(what: str, value: float, bound: float, form: str) -> Line:
    return Line(what, format(value, form), f"> {bound:{form}}", value > bound)


def _adherence(base: Base, vae: Any, effort: Effort, show: Show) -> Iterator[Line]:
    wanted = [plain(SEED, "adherence", index) for index in range(effort.captions)]
    pictures = sampled(base, vae, [full_caption(one) for one in wanted], SEED, effort.steps)
    show("plain", [pictures])
    for what, read, trait in (("body", body_color, "color"), ("background", background_color, "background")):
        right = [read(picture) == getattr(one, trait) for picture, one in zip(pictures, wanted, strict=True)]
        yield _above(f"{what} has the caption's colour, share of {len(wanted)}", float(np.mean(right)), 0.9, ".2f")


def _levels(base: Base, vae: Any, effort: Effort) -> Iterator[Line]:
    held = samples(base, vae, validation(SEED, effort.held), _caption)
    whole = held_errors(base.unet, held)
    yield Line(f"loss on {effort.held} unseen pictures", f"{float(whole[0].mean()):.4f}")
    yield Line("  without text", rise(whole, held_errors(base.unet, held, text=False)))
    for place in LEVEL2:
        with bypassed(base.unet, place):
            found = rise(whole, held_errors(base.unet, held))
        yield Line(f"  without the transformers of {'-'.join(BLOCKS[place])}", found)
    with bypassed(base.unet, *LEVEL2):
        without_them = held_errors(base.unet, held)
    yield Line("  without those of all of level 2", rise(whole, without_them))
    yield _above("  the first of these", float(without_them[0].mean() / whole[0].mean()) - 1, 0.1, "+.1%")


def _speed(base: Base, vae: Any, effort: Effort) -> Line:
    settings = {
        "prompt": full_caption(plain(SEED, "adherence", 0)), "negative_prompt": "", "width": SIZE, "height": SIZE,
        "seed": SEED, "scale": 3.0, "sample_steps": effort.steps, "sampler": "euler", "parity": False,
        "prediction_type": "epsilon", "zero_terminal_snr": False, "mixed_precision": "no",
    }  # fmt: skip
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        draw(base, lambda: vae, settings, str(base.unet.device))
        seconds.append(time.perf_counter() - began)
    figure = min(seconds)
    threads = torch.get_num_threads()
    return Line(
        f"{effort.steps} Euler steps, seconds a picture, {threads} threads",
        f"{figure:.2f}",
        "< 1 on two cores",
        figure < 1,
    )


# LoRAs on what is held back


def _loras(base: Base, vae: Any, effort: Effort, show: Show) -> Iterator[Line]:
    for what, (picture, text) in SUBJECTS.items():
        yield from _lora(base, vae, effort, show, what, picture, text)


def _lora(
    base: Base,
    vae: Any,
    effort: Effort,
    show: Show,
    what: str,
    picture: Callable[[int], Picture],
    text: Caption,
) -> Iterator[Line]:
    seen = samples(base, vae, [picture(n) for n in range(LORA_PICTURES)], text)
    unseen = samples(base, vae, [picture(LORA_PICTURES + n) for n in range(HELD_PICTURES)], text)
    prompts = [text(picture(LORA_PICTURES + n), n) for n in range(effort.drawn)]
    before = loss_of(base.unet, unseen, HELD_DRAWS)
    rows = [sampled(base, vae, prompts, SEED, effort.steps)]
    with adapted(base, Shape.of(LORA), SEED, ("unet",), str(base.unet.device)) as adapter:
        _train(base, adapter, seen, effort.updates)
        after = loss_of(base.unet, unseen, HELD_DRAWS)
        gain = 1 - after / before
        yield _above(f"LoRA of a {what}: fall of the held-out loss, {effort.updates} updates", gain, 0.25, ".1%")
        rows.append(sampled(base, vae, prompts, SEED, effort.steps))
        for blocks in BLOCKS.values():
            with without(adapter, blocks):
                rows.append(sampled(base, vae, prompts, SEED, effort.steps))
            change = float(np.abs(rows[-1].astype(np.float32) - rows[1]).mean())
            yield _above(f"  pixels changed without {'-'.join(blocks)}, of 255", change, 5.0, ".1f")
    show(f"lora-{what}", rows)  # base, trained, then without each part of level 2


@contextmanager
def without(adapter: Adapter, blocks: Sequence[str]) -> Iterator[None]:
    """The adapter's layers in these blocks off."""
    taken = [module for name, module in adapter.modules.items() if (block_of(name) or "").startswith(tuple(blocks))]
    for module in taken:
        module.detach()
    try:
        yield
    finally:
        for module in taken:
            module.attach()


def _train(base: Base, adapter: Adapter, seen: Samples, updates: int) -> None:
    parameters = list(adapter.parameters().values())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0)
    rows = torch.arange(LORA_BATCH) % len(seen.latents)
    for step in range(updates):
        draws = generator(SEED, "lora", step)
        for group in optimizer.param_groups:
            group["lr"] = LORA["unet_lr"] * min(1.0, (step + 1) / WARMUP) * (1 - 0.9 * step / updates)
        timesteps = torch.randint(TIMESTEPS, (len(rows),), generator=draws)
        noise = torch.randn(len(rows), *seen.latents.shape[1:], generator=draws)
        adapter.at(step, 0)
        errors(base.unet, seen.latents[rows], noise, timesteps, seen.hidden[rows], seen.pooled[rows]).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    adapter.measuring()


def samples(base: Base, vae: Any, pictures: Iterable[Picture], text: Caption) -> Samples:
    """Latents and conditions of pictures, one caption each."""
    pictures = list(pictures)
    captions = [text(one, number) for number, one in enumerate(pictures)]
    pixels = torch.stack([as_input(pixels_of(one)) for one in pictures])
    hidden, pooled = conditions(base.te1, base.te2, ["", *captions], TEXT_TOKENS)
    return Samples(encoded(vae, pixels), hidden[1:], pooled[1:], (hidden[0], pooled[0]))
