"""The schedules of the learning rate by name: which arguments they have, and which manifest key each may come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lorabuild.errors import near_miss
from lorabuild.training.optimizers import shown

DEFAULT = "constant"
# schedule -> its arguments with their defaults, by transformers' and diffusers' names. None: not set.
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {"num_cycles": 0.5},
    "cosine_with_restarts": {"num_cycles": 1},
    "polynomial": {"power": 1.0, "lr_end": 1e-7, "lr_init": None},
    "inverse_sqrt": {"timescale": None},
    "cosine_with_min_lr": {"num_cycles": 0.5, "min_lr_rate": None, "min_lr": None, "lr_init": None},
    "warmup_stable_decay": {
        "num_cycles": 0.5,
        "min_lr_ratio": 0.0,
        "warmup_type": "linear",
        "decay_type": "cosine",
    },
    "piecewise_constant": {"step_rules": None},
    "adafactor": {},
}
WITHOUT_WARMUP = ("constant", "piecewise_constant", "adafactor")
SHAPES = ("linear", "cosine", "1-sqrt")
# Keys of [recipe] that say an argument, too: schedule -> argument -> (key, what one of the key is in the argument)
KEYS: dict[str, dict[str, tuple[str, float]]] = {
    "cosine_with_restarts": {"num_cycles": ("lr_scheduler_num_cycles", 1)},
    "polynomial": {"power": ("lr_scheduler_power", 1)},
    "inverse_sqrt": {"timescale": ("lr_scheduler_timescale", 1)},
    "cosine_with_min_lr": {
        "num_cycles": ("lr_scheduler_num_cycles", 0.5),
        "min_lr_rate": ("lr_scheduler_min_lr_ratio", 1),
    },
    "warmup_stable_decay": {
        "num_cycles": ("lr_scheduler_num_cycles", 0.5),
        "min_lr_ratio": ("lr_scheduler_min_lr_ratio", 1),
    },
}
# What those keys are if they are not set.
KEY_DEFAULTS: dict[str, float | None] = {
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1,
    "lr_scheduler_timescale": None,
    "lr_scheduler_min_lr_ratio": None,
    "lr_decay_steps": 0,
}


def family(name: str) -> str:
    """ "adafactor:1e-4" -> "adafactor"."""
    return "adafactor" if name.startswith("adafactor:") else name


def canonical(name: str) -> str:
    """The name of a schedule, checked. Raises ValueError, in a user's words."""
    kind, colon, rate = name.partition(":")
    if kind == "adafactor" and colon:
        try:
            if float(rate) >= 0 and math.isfinite(float(rate)):
                return name
        except ValueError:
            pass
        raise ValueError(f'expected a learning rate after "adafactor:", got "{name}"')
    if name in SCHEDULES:
        return name
    options = ", ".join(SCHEDULES)
    raise ValueError(f'expected one of {options}; got "{name}"{near_miss(name, SCHEDULES)}')


def arguments(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a recipe's schedule: those of `lr_scheduler_args`, else of the keys, else the defaults.

    Fractions of another rate (`lr_end`, `min_lr`) are of `lr_init`: `learning_rate` if the recipe has it, else the
    largest rate of a part; sd-scripts takes its `learning_rate` even where no part uses it.
    """
    name, given = family(recipe["lr_scheduler"]), recipe.get("lr_scheduler_args") or {}
    found = dict(SCHEDULES[name])
    for argument, (key, unit) in KEYS.get(name, {}).items():
        if recipe.get(key) is not None:
            found[argument] = recipe[key] * unit if unit != 1 else recipe[key]
    found |= {key: value for key, value in given.items() if key in found}
    if "lr_init" in found and found["lr_init"] is None and (name == "polynomial" or found["min_lr"] is not None):
        found["lr_init"] = recipe.get("learning_rate") or _largest_rate(recipe)
    return {key: value for key, value in found.items() if value is not None}


def _largest_rate(recipe: Mapping[str, Any]) -> float:
    rates = [recipe.get("unet_lr"), recipe.get("text_encoder_lr")]
    flat = [one for rate in rates for one in (rate if isinstance(rate, list) else [rate])]
    return max((rate for rate in flat if rate), default=0.0)


def faults(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key of the recipe, what is wrong) of what a recipe says of its schedule. `recipe` holds what was set only."""
    name, args = family(recipe.get("lr_scheduler", DEFAULT)), recipe.get("lr_scheduler_args") or {}
    known, keys = SCHEDULES[name], KEYS.get(name, {})
    wrong = []
    if args and not known:
        return [("lr_scheduler_args", f'lr_scheduler "{name}" takes no arguments')]
    for argument, value in args.items():
        path = f"lr_scheduler_args.{argument}"
        if argument not in known:
            wrong.append((path, f"unknown key{near_miss(argument, known)}; {name} has {', '.join(known)}"))
        elif said := _misfit(argument, value):
            wrong.append((path, said))
        elif argument in keys and _is_set(recipe, keys[argument][0]):
            wrong.append((keys[argument][0], f"lr_scheduler_args.{argument} says it, too: set one of them"))
    read = {key for key, _ in keys.values()} | ({"lr_decay_steps"} if name == "warmup_stable_decay" else set())
    for key in KEY_DEFAULTS:
        if _is_set(recipe, key) and key not in read:
            argument = key.removeprefix("lr_scheduler_")
            advice = f": it reads lr_scheduler_args.{argument}" if argument in known else ""
            wrong.append((key, f'lr_scheduler "{name}" does not read it{advice}'))
    return wrong + _incomplete(name, recipe, args)


def _incomplete(name: str, recipe: Mapping[str, Any], args: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a schedule cannot be without, and what says one thing twice."""
    if recipe.get("lr_warmup_steps") and name in WITHOUT_WARMUP:
        return [("lr_warmup_steps", f'lr_scheduler "{name}" has no warm-up: set 0')]
    if name == "piecewise_constant":
        if "step_rules" not in args:
            said = '"piecewise_constant" needs step_rules, factor:until and a last factor: lr_scheduler_args = '
            return [("lr_scheduler", said + '{ step_rules = "1:10,0.1:20,0.01" }')]
        try:
            piecewise(args["step_rules"])
        except ValueError:
            said = f'expected "factor:until,…,factor" as in "1:10,0.1:20,0.01", got {shown(args["step_rules"])}'
            return [("lr_scheduler_args.step_rules", said)]
    if name == "cosine_with_min_lr":
        given = [key for key in ("min_lr", "min_lr_rate") if args.get(key) is not None]
        given += ["lr_scheduler_min_lr_ratio"] if _is_set(recipe, "lr_scheduler_min_lr_ratio") else []
        if not given:
            return [("lr_scheduler", '"cosine_with_min_lr" needs lr_scheduler_min_lr_ratio: where the rate ends')]
        if len(given) > 1:
            return [("lr_scheduler_args", f"{' and '.join(given)} say one thing twice: set one of them")]
    return []


def _is_set(recipe: Mapping[str, Any], key: str) -> bool:
    return recipe.get(key, KEY_DEFAULTS[key]) not in (KEY_DEFAULTS[key], None)


def _misfit(argument: str, value: Any) -> str:
    if argument in ("warmup_type", "decay_type"):
        options = " or ".join(f'"{shape}"' for shape in SHAPES)
        return "" if value in SHAPES else f"expected {options}, got {shown(value)}"
    if argument == "step_rules":
        return "" if isinstance(value, str) else f"expected text, got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"expected a number, got {shown(value)}"
    if argument in ("num_cycles", "timescale", "lr_init") and value <= 0:
        return f"expected more than 0, got {value:g}"
    if argument in ("min_lr_rate", "min_lr_ratio") and not 0 <= value <= 1:
        return f"expected a part from 0 to 1, got {value:g}"
    return f"expected 0 or more, got {value:g}" if value < 0 else ""


def piecewise(rules: str) -> list[tuple[int | None, float]]:
    """ "1:10,0.1:20,0.01" -> [(10, 1), (20, 0.1), (None, 0.01)]: until which update which factor. Raises ValueError."""
    *parts, last = rules.split(",")
    until = {}
    for part in parts:
        factor, colon, step = part.partition(":")
        if not colon:
            raise ValueError(rules)
        until[int(step)] = float(factor)
    found: list[tuple[int | None, float]] = [*sorted(until.items()), (None, float(last))]
    if not all(math.isfinite(factor) and factor >= 0 for _, factor in found):
        raise ValueError(rules)
    return found


def share(value: int | float, of: int) -> int:
    """A number of updates: `value` itself, or a part of `of` where it is below 1."""
    return int(value) if value >= 1 else int(value * of)
