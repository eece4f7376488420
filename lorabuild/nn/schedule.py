"""The learning rate at each update, as a factor of the rate that was set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lorabuild.errors import JobError


def learning_rate_factor(recipe: Mapping[str, Any], update: int) -> float:
    """The factor for update number `update` (from 0) of `max_train_steps`: `constant`, or `cosine` after a warm-up.

    Cosine: max(0, ½(1 + cos(2π c p))) with c = `lr_scheduler_args.num_cycles`, ½ if not set (one fall to 0), and p the
    part done of the updates after the warm-up (Loshchilov & Hutter 2017, eq. 5, with c instead of restarts). The
    warm-up rises linearly from 0. Raises JobError for another scheduler, and for a warm-up of a constant rate.
    """
    scheduler, warmup = recipe["lr_scheduler"], warmup_updates(recipe)
    if scheduler == "constant":
        if warmup:
            raise JobError("recipe.lr_warmup_steps: a constant rate has no warm-up")
        return 1.0
    if scheduler != "cosine":
        raise JobError(f"recipe.lr_scheduler: {scheduler!r} is neither constant nor cosine")
    if update < warmup:
        return update / warmup
    cycles = (recipe.get("lr_scheduler_args") or {}).get("num_cycles", 0.5)
    done = (update - warmup) / max(1, recipe["max_train_steps"] - warmup)
    return max(0.0, 0.5 * (1 + math.cos(2 * math.pi * cycles * done)))


def warmup_updates(recipe: Mapping[str, Any]) -> int:
    """`lr_warmup_steps` as a number of updates: below 1 it is a part of `max_train_steps`."""
    steps = recipe.get("lr_warmup_steps") or 0
    return int(steps) if steps >= 1 else int(steps * recipe["max_train_steps"])
