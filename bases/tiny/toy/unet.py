"""Train the U-Net on cached latents and captions, so that its deepest level does its share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from lorabuild.nn.noise import generator
from lorabuild.nn.objective import STEPS, add_noise, alphas_cumprod
from lorabuild.nn.text import TOKENS
from lorabuild.streams import python_random
from toy.configs import SIZE
from toy.learn import Log, Plan, learn
from toy.levels import LEVEL1, LEVEL2, bypassed, without_skips
from toy.text import FULL_EVERY, SHORT

GAMMA = 5.0  # of min-SNR weights (Hang et al. 2023)
ZEROED, EMPTIED = 0.05, 0.05  # shares of samples without text: zeros, or the empty caption


@dataclass(frozen=True)
class Cure:
    """What is to make level 2 work: without it, level 1 learns everything first (docs/log.md has what was tried).

    `alone`: share of the run at whose beginning level 1's transformers are left out. `left_out`: share of the updates
    after that in which they are. `branch`, `exit`: how level 2 starts (`levels.start`). `skipless`: share of the samples
    for which levels 0 and 1 hand nothing across. `taught`: weight of a loss of level 2's own, that a linear layer, thrown
    away afterwards, tells the clean latents in half their size from what it hands up. All 0 is the prototype's way.
    """

    alone: float = 0.4
    left_out: float = 0.3
    branch: float = 0.3
    exit: float = 0.5
    skipless: float = 0.0
    taught: float = 0.0

    def leaves_out(self, seed: int, step: int, steps: int) -> bool:
        if step < self.alone * steps:
            return True
        return python_random(seed, "level 1", step).random() < self.left_out


@dataclass(frozen=True)
class Samples:
    """Latents [N, 4, h, w], scaled; for each caption of each picture hidden states [N * V, 77, C] and pooled [N * V, C2].

    Caption v of picture n is row n * V + v. `empty`: the same of the empty caption.
    """

    latents: Tensor
    hidden: Tensor
    pooled: Tensor
    empty: tuple[Tensor, Tensor]

    @property
    def captions(self) -> int:
        return len(self.hidden) // len(self.latents)


def train(
    unet: Any,
    folder: Path,
    samples: Samples,
    held: Samples,
    seed: int,
    batch: int,
    plan: Plan,
    cure: Cure,
    log: Log,
    of: str = "",
) -> None:
    """Min-SNR-weighted error of the noise; the loss is measured on `held`. `of`: see `learn`."""
    device, weights = next(unet.parameters()).device, min_snr_weights()
    head = nn.Conv2d(unet.config.block_out_channels[-1], samples.latents.shape[1], 1).to(device)
    handed_up: list[Tensor] = []

    def loss_at(step: int) -> Tensor:
        draw = generator(seed, "unet", step)
        rows = _rows(seed, step, batch, len(samples.latents))
        latents = samples.latents[rows].float()
        # One timestep from each of `batch` equal parts: the loss of a batch varies less.
        even = (torch.rand(batch, generator=draw) + torch.arange(batch)) / batch * STEPS
        timesteps = even.long()
        noise = torch.randn(latents.shape, generator=draw)
        hidden, pooled = _texts(samples, rows, draw, TOKENS if step % FULL_EVERY == 0 else SHORT)
        skips = (torch.rand(batch, generator=draw) >= cure.skipless).float().to(device)
        with (
            bypassed(unet, *LEVEL1) if cure.leaves_out(seed, step, plan.steps) else nullcontext(),
            without_skips(unet, skips) if cure.skipless else nullcontext(),
        ):
            error = errors(unet, latents, noise, timesteps, hidden, pooled)
        own = (head(handed_up.pop()) - avg_pool2d(latents, 2).to(device)).square().mean()
        handed_up.clear()
        return (error * weights[timesteps].to(device)).mean() + cure.taught * own

    def measure() -> str:
        whole = validation(unet, held)
        with bypassed(unet, *LEVEL2):
            without = validation(unet, held)
        handed_up.clear()
        return f"validation {whole:.4f}, without level 2 {without:.4f} ({without / whole - 1:+.1%})"

    hook = unet.up_blocks[0].register_forward_hook(lambda module, given, found: handed_up.append(found))
    learn("unet", folder, {"unet": unet, "head": head}, loss_at, plan, log, measure, of)
    hook.remove()


def errors(unet: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, hidden: Tensor, pooled: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, of each sample [B]."""
    device = next(unet.parameters()).device
    seen = add_noise(latents, noise, timesteps, alphas_cumprod()).to(device)
    conditions = {"text_embeds": pooled.to(device), "time_ids": sizes(len(latents)).to(device)}
    found = unet(seen, timesteps.to(device), hidden.to(device), added_cond_kwargs=conditions).sample
    return (found - noise.to(device)).square().mean((1, 2, 3))


def sizes(count: int) -> Tensor:
    """Size conditioning [count, 6]: pictures that were this large, and not cropped."""
    return torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32).expand(count, 6)


def min_snr_weights() -> Tensor:
    """[1000] of a sample's loss by its timestep: less where there is little noise."""
    kept = alphas_cumprod()
    signal = kept / (1 - kept)
    return signal.clamp(max=GAMMA) / signal


def validation(unet: Any, held: Samples, draws: int = 1, text: bool = True) -> float:
    """Mean squared error over `held`, each at `draws` timesteps that are even over all, with noise of its own."""
    return float(held_errors(unet, held, draws, text)[0].mean())


@torch.no_grad()
def held_errors(unet: Any, held: Samples, draws: int = 1, text: bool = True, batch: int = 64) -> tuple[Tensor, Tensor]:
    """(errors [N * draws], their timesteps), of what `validation` is the mean."""
    count = len(held.latents) * draws
    rows = torch.arange(count) % len(held.latents)
    timesteps = (torch.arange(count) * STEPS) // count
    timesteps = timesteps[torch.randperm(count, generator=generator(0, "validation order"))]
    noise = torch.randn(count, *held.latents.shape[1:], generator=generator(0, "validation noise"))
    found = []
    for part in range(0, count, batch):
        now = slice(part, part + batch)
        texts = rows[now] * held.captions
        hidden, pooled = held.hidden[texts, :SHORT].float(), held.pooled[texts].float()
        if not text:
            hidden, pooled = torch.zeros_like(hidden), torch.zeros_like(pooled)
        found.append(errors(unet, held.latents[rows[now]].float(), noise[now], timesteps[now], hidden, pooled).cpu())
    return torch.cat(found), timesteps


def rise(whole: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> str:
    """By how much `other`'s errors are larger, of `held_errors`: all; as trained, by min-SNR; by thirds of the timesteps."""
    timesteps = whole[1]
    weights = min_snr_weights()[timesteps]
    parts = [torch.ones(len(timesteps)), weights]
    parts += [(timesteps * 3 // STEPS == third).float() for third in range(3)]
    told = [f"{float((other[0] * part).sum() / (whole[0] * part).sum()) - 1:+.1%}" for part in parts]
    return f"{told[0]} (weighted {told[1]}; little, some, much noise {', '.join(told[2:])})"


def _texts(samples: Samples, rows: Tensor, draw: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    which = rows * samples.captions + torch.randint(samples.captions, (len(rows),), generator=draw)
    hidden, pooled = samples.hidden[which, :length].float(), samples.pooled[which].float()
    chance = torch.rand(len(rows), generator=draw)
    zeroed, emptied = chance < ZEROED, chance > 1 - EMPTIED
    hidden[zeroed], pooled[zeroed] = 0.0, 0.0
    hidden[emptied], pooled[emptied] = samples.empty[0][:length].float(), samples.empty[1].float()
    return hidden, pooled


def _rows(seed: int, step: int, batch: int, count: int) -> Tensor:
    """Which pictures update `step` sees: each once an epoch, in an order of the epoch's own."""
    places: Sequence[int] = range(step * batch, (step + 1) * batch)
    return torch.stack([_order(seed, place // count, count)[place % count] for place in places])


@lru_cache(2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "order", epoch))
