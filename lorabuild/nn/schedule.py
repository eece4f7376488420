"""The learning rate at each update: a function of the update's number, so that a resumed run needs no state of it."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lorabuild.errors import JobError
from lorabuild.training.phases import phase_at, phases
from lorabuild.training.schedules import SCHEDULES, WITHOUT_WARMUP, arguments, family, piecewise, share

Args = Mapping[str, Any]


def learning_rate_factor(recipe: Mapping[str, Any], update: int) -> float:
    """The factor of the rate that was set, for update number `update` (from 0) of `max_train_steps`.

    The named schedules are those of transformers, piecewise_constant is diffusers'. A warm-up of w updates rises linearly
    from 0; after it p is the part done of the updates that are left. With phases, an update belongs to one of them and
    is counted from its start. Raises JobError for a schedule that there is not, and for a warm-up of one without.
    """
    number, update = phase_at(recipe, update)
    recipe = phases(recipe)[number]
    name, total, warmup = family(recipe["lr_scheduler"]), recipe["max_train_steps"], warmup_updates(recipe)
    if name not in SCHEDULES:
        raise JobError(f"recipe.lr_scheduler: {name!r} is none of {', '.join(SCHEDULES)}")
    if name in WITHOUT_WARMUP:
        if warmup:
            raise JobError(f"recipe.lr_warmup_steps: a rate that is {name} has no warm-up")
        return _piecewise(recipe, update) if name == "piecewise_constant" else 1.0
    args = arguments(recipe)
    if name == "warmup_stable_decay":
        return _stable(args, update, warmup, total, share(recipe.get("lr_decay_steps") or 0, total))
    if update < warmup:
        return update / warmup
    if name == "inverse_sqrt":
        scale = args.get("timescale") or warmup or 10_000
        return 1 / math.sqrt((update + scale - warmup) / scale)
    done = (update - warmup) / max(1, total - warmup)
    return FALLS[name](args, done)


def warmup_updates(recipe: Mapping[str, Any]) -> int:
    """`lr_warmup_steps` as a number of updates: below 1 it is a part of `max_train_steps`."""
    return share(recipe.get("lr_warmup_steps") or 0, recipe["max_train_steps"])


def _cosine(args: Args, done: float) -> float:
    """max(0, ½(1 + cos(2π c p))), c = `num_cycles`; ½ is one fall to 0 (Loshchilov & Hutter 2017, eq. 5, without restarts)."""
    return max(0.0, 0.5 * (1 + math.cos(2 * math.pi * args["num_cycles"] * done)))


def _cosine_with_restarts(args: Args, done: float) -> float:
    """`num_cycles` falls to 0, each from the full rate."""
    return 0.0 if done >= 1 else max(0.0, 0.5 * (1 + math.cos(math.pi * ((args["num_cycles"] * done) % 1.0))))


def _cosine_with_min_lr(args: Args, done: float) -> float:
    """A cosine between 1 and `min_lr_rate`, or `min_lr` as a part of `lr_init`."""
    low = args["min_lr_rate"] if "min_lr_rate" in args else args["min_lr"] / args["lr_init"]
    wave = 0.5 * (1 + math.cos(2 * math.pi * args["num_cycles"] * done))
    return max(0.0, wave * (1 - low) + low)


def _polynomial(args: Args, done: float) -> float:
    """From 1 to `lr_end` / `lr_init`, by the power `power` of what is left."""
    if not args["lr_init"]:
        return 1.0
    end = args["lr_end"] / args["lr_init"]
    return (1 - end) * (1 - done) ** args["power"] + end if done <= 1 else end


FALLS: dict[str, Callable[[Args, float], float]] = {
    "constant_with_warmup": lambda args, done: 1.0,
    "linear": lambda args, done: max(0.0, 1 - done),
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "polynomial": _polynomial,
}


def _stable(args: Args, update: int, warmup: int, total: int, decay: int) -> float:
    """A warm-up from `min_lr_ratio`, the full rate, and in the last `decay` updates a fall to `min_lr_ratio`."""
    low = args["min_lr_ratio"]
    if update < warmup:
        done = update / warmup
        rise = {"linear": done, "cosine": 0.5 * (1 - math.cos(math.pi * done)), "1-sqrt": 1 - math.sqrt(1 - done)}
        return max(0.0, rise[args["warmup_type"]] * (1 - low) + low)
    if update < total - decay:
        return 1.0
    if update >= total:
        return low
    done = (update - (total - decay)) / decay
    wave = 0.5 * (1 + math.cos(2 * math.pi * args["num_cycles"] * done))
    fall = {"linear": 1 - done, "cosine": wave, "1-sqrt": 1 - math.sqrt(done)}
    return max(0.0, fall[args["decay_type"]] * (1 - low) + low)


def _piecewise(recipe: Mapping[str, Any], update: int) -> float:
    rules = piecewise(arguments(recipe)["step_rules"])
    return next(factor for until, factor in rules if until is None or update < until)


class Rates:
    """What each group of an optimizer is to be set to at each update.

    `of_phase[p][g]` is the rate of group g in phase p before its schedule. A class (`lr_scheduler_type`) is stepped from
    its phase's start on a stand-in with the groups' settings, once for all updates; what it changes of a group (the rate,
    a momentum) is taken over. Raises JobError where it cannot be made so.
    """

    def __init__(
        self, recipe: Mapping[str, Any], of_phase: Sequence[Sequence[float]], optimizer: torch.optim.Optimizer
    ):
        self._recipe, self._of_phase = recipe, of_phase
        self._phases = phases(recipe)
        self._stepped = {
            number: _stepped(phase, of_phase[number], optimizer)
            for number, phase in enumerate(self._phases)
            if phase.get("lr_scheduler_type")
        }

    def at(self, update: int) -> list[dict[str, Any]]:
        """Group settings at update number `update`, from 0: `lr`, and what else a class changes."""
        number, within = phase_at(self._recipe, update)
        if number in self._stepped:
            return self._stepped[number][within]
        factor = learning_rate_factor(self._recipe, update)
        return [{"lr": rate * factor} for rate in self._of_phase[number]]


class _StandIn(torch.optim.Optimizer):
    """Groups with the settings of another optimizer's, and nothing to train."""

    def step(self, closure: Any = None) -> None:
        pass


def _stepped(
    phase: Mapping[str, Any], rates: Sequence[float], optimizer: torch.optim.Optimizer
) -> list[list[dict[str, Any]]]:
    """update of the phase -> group -> settings."""
    path = phase["lr_scheduler_type"]
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [
        {**settings, "lr": rate, "params": [torch.nn.Parameter(torch.zeros(1))]}
        for settings, rate in zip(own, rates, strict=True)
    ]
    stand_in = _StandIn(groups, {key: value for key, value in optimizer.defaults.items() if key != "params"})
    try:
        scheduler = _class(path)(stand_in, **(phase.get("lr_scheduler_args") or {}))
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(phase["max_train_steps"]):
                found.append([_settings(group) for group in stand_in.param_groups])
                stand_in.step()
                scheduler.step()
    except Exception as error:  # whatever a class of somebody else's raises: it cannot be used so
        raise JobError(f"recipe.lr_scheduler_type: {path}: {type(error).__name__}: {error}".splitlines()[0]) from None
    varying = {key for one in found for g, group in enumerate(one) for key in group if group[key] != own[g].get(key)}
    return [[{key: group[key] for key in group if key in varying | {"lr"}} for group in one] for one in found]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler may have set; `initial_lr` and its like are its own."""
    return {
        key: float(value) if key == "lr" else value
        for key, value in group.items()
        if key not in ("params", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
    }


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"no such class ({error})") from None
