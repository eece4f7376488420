"""Train the U-Net on cached latents and captions, so that its deepest level does its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from lorabuild.nn.noise import generator
from lorabuild.nn.objective import STEPS, add_noise, alphas_cumprod
from lorabuild.nn.text import TOKENS
from lorabuild.streams import python_random
from toy.configs import SIZE
from toy.learn import Log, Plan, learn
from toy.levels import LEVEL1, LEVEL2, bypassed
from toy.text import FULL_EVERY, SHORT

GAMMA = 5.0  # of min-SNR weights (Hang et al. 2023)
ZEROED, EMPTIED = 0.05, 0.05  # shares of samples without text: zeros, or the empty caption


@dataclass(frozen=True)
class Cure:
    """What is to make level 2 work: without it, level 1 learns everything first (docs/log.md has what was tried).

    `deep`: updates before all others, of level 2 and the way down to it alone (`train_deep`). `alone`: share of the run
    proper at whose beginning level 1's transformers are left out. `left_out`: share of the updates after that in which
    they are. `branch`, `exit`: how level 2 starts (`levels.start`). `taught`: weight of what `train_deep` minimises in the
    run proper. All 0 is the prototype's way.
    """

    deep: int = 600
    alone: float = 0.35
    left_out: float = 0.3
    branch: float = 0.3
    exit: float = 0.5
    taught: float = 0.1

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


class Deep(nn.Module):
    """Level 2 with what stands before it, and a linear layer that tells the clean latents, in half their size, from what
    level 2 hands up. The layer is thrown away afterwards."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.head = nn.Conv2d(unet.config.block_out_channels[-1], unet.config.out_channels, 1)
        self.to(next(unet.parameters()).device)

    def losses(self, given: Draw) -> Tensor:
        """Mean squared error of each sample [B], at a fraction of a whole pass: nothing above level 2 is computed."""
        with bypassed(self.unet, "down1"), self._handed_up(_Enough) as found, suppress(_Enough):
            errors(self.unet, *given)
        return self.of(found, given.latents)

    def of(self, handed_up: list[Tensor], latents: Tensor) -> Tensor:
        found = self.head(handed_up.pop())
        return (found - avg_pool2d(latents, 2).to(found.device)).square().mean((1, 2, 3))

    @contextmanager
    def _handed_up(self, then: type[Exception] | None = None) -> Iterator[list[Tensor]]:
        """What level 2 hands up within the block, after which `then` is raised."""
        found: list[Tensor] = []

        def hear(_: nn.Module, __: Any, output: Tensor) -> None:
            found.append(output)
            if then:
                raise then

        hook = self.unet.up_blocks[0].register_forward_hook(hear)
        try:
            yield found
        finally:
            hook.remove()

    def both(self, given: Draw) -> tuple[Tensor, Tensor]:
        """(errors of the noise, `losses`) [B] of one whole pass."""
        with self._handed_up() as found:
            of_noise = errors(self.unet, *given)
        return of_noise, self.of(found, given.latents)


class _Enough(Exception):
    """The rest of a pass is not wanted."""


def train_deep(
    deep: Deep, folder: Path, samples: Samples, held: Samples, seed: int, batch: int, plan: Plan, log: Log, of: str = ""
) -> None:
    """Level 2 before all others: it learns the layout and to read captions while there is nobody who could do without it."""

    def measure() -> str:
        given = _held_draw(held)
        with torch.no_grad():
            whole, silent = (deep.losses(one).cpu() for one in (given, given.without_text()))
        return f"layout {by_noise(whole, given.timesteps)}, without text {by_noise(silent, given.timesteps)}"

    learn(
        "deep", folder, {"deep": deep}, lambda step: deep.losses(_draw(samples, seed, step, batch)).mean(), plan, log,
        measure, of,
    )  # fmt: skip


def train(
    deep: Deep,
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
    """All of it: min-SNR-weighted error of the noise; the loss is measured on `held`. `of`: see `learn`."""
    unet = deep.unet
    weights = min_snr_weights().to(next(unet.parameters()).device)

    def loss_at(step: int) -> Tensor:
        given = _draw(samples, seed, step, batch)
        with bypassed(unet, *LEVEL1) if cure.leaves_out(seed, step, plan.steps) else nullcontext():
            of_noise, own = deep.both(given)
        return (of_noise * weights[given.timesteps]).mean() + cure.taught * own.mean()

    def measure() -> str:
        whole = held_errors(unet, held)
        with bypassed(unet, *LEVEL2):
            without = rise(whole, held_errors(unet, held))
        silent = rise(whole, held_errors(unet, held, text=False))
        return f"validation {float(whole[0].mean()):.4f}\n  without level 2 {without}\n  without text    {silent}"

    learn("unet", folder, {"deep": deep}, loss_at, plan, log, measure, of)


class Draw(NamedTuple):
    """What a pass is given: latents [B, 4, h, w], noise like them, timesteps [B], hidden states [B, T, C], pooled [B, C2]."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    hidden: Tensor
    pooled: Tensor

    def without_text(self) -> Draw:
        return self._replace(hidden=torch.zeros_like(self.hidden), pooled=torch.zeros_like(self.pooled))


def _draw(samples: Samples, seed: int, step: int, batch: int) -> Draw:
    """Of update `step`. One timestep from each of `batch` equal parts: the loss of a batch varies less."""
    draw = generator(seed, "unet", step)
    rows = _rows(seed, step, batch, len(samples.latents))
    latents = samples.latents[rows].float()
    timesteps = ((torch.rand(batch, generator=draw) + torch.arange(batch)) / batch * STEPS).long()
    noise = torch.randn(latents.shape, generator=draw)
    texts = _texts(samples, rows, draw, TOKENS if step % FULL_EVERY == 0 else SHORT)
    return Draw(latents, noise, timesteps, *texts)


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
    given = _held_draw(held, draws)
    given = given if text else given.without_text()
    parts = zip(*(one.split(batch) for one in given), strict=True)
    return torch.cat([errors(unet, *part).cpu() for part in parts]), given.timesteps


def _held_draw(held: Samples, draws: int = 1) -> Draw:
    count = len(held.latents) * draws
    rows = torch.arange(count) % len(held.latents)
    timesteps = (torch.arange(count) * STEPS) // count
    timesteps = timesteps[torch.randperm(count, generator=generator(0, "validation order"))]
    noise = torch.randn(count, *held.latents.shape[1:], generator=generator(0, "validation noise"))
    texts = rows * held.captions
    hidden, pooled = held.hidden[texts, :SHORT].float(), held.pooled[texts].float()
    return Draw(held.latents[rows].float(), noise, timesteps, hidden, pooled)


def by_noise(found: Tensor, timesteps: Tensor) -> str:
    """Means of what each sample has [B], by thirds of the timesteps: little, some, much noise."""
    return "/".join(f"{float(found[timesteps * 3 // STEPS == third].mean()):.3f}" for third in range(3))


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
