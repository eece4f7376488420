"""The optimizers by name, without importing one: their classes, arguments and defaults."""

from __future__ import annotations

import json
import math
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorabuild.errors import near_miss

DEFAULT = "AdamW"
ADAM = {"betas": [0.9, 0.999], "eps": 1e-8}
SMALL_STATES = {"amsgrad": False, "min_8bit_size": 4096}
FOUND = {"growth_rate": None, "d0": 1e-6}  # growth_rate: unbounded if not set


@dataclass(frozen=True)
class Optimizer:
    """A class, and the arguments that can be set with their defaults: None is "not set" and stays out of a key.

    `rare` are arguments that are in a key only where they differ from their default. `fixed` are set always.
    `extra`: the extra of lorabuild that brings the package. `finds_rate`: it has one rate for all groups, whose scale it
    finds itself. `schedule_free`: it averages the weights instead of following a schedule.
    """

    path: str
    args: Mapping[str, Any]
    rare: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    extra: str = ""
    finds_rate: bool = False
    schedule_free: bool = False


def _bitsandbytes(name: str, args: Mapping[str, Any], **fixed: Any) -> Optimizer:
    return Optimizer(f"bitsandbytes.optim.{name}", args, fixed=fixed, extra="bitsandbytes")


def _dadaptation(name: str, args: Mapping[str, Any], module: str = "dadaptation") -> Optimizer:
    return Optimizer(f"{module}.{name}", args, extra="dadaptation", finds_rate=True)


def _schedule_free(name: str, args: Mapping[str, Any]) -> Optimizer:
    common = {"weight_decay": 0.0, "r": 0.0, "weight_lr_power": 2.0}
    return Optimizer(f"schedulefree.{name}", args | common, extra="schedulefree", schedule_free=True)


_BNB_ADAM = ADAM | {"weight_decay": 0.01} | SMALL_STATES
_BNB_LION = {"betas": [0.9, 0.99], "weight_decay": 0.0, "min_8bit_size": 4096}
_COMPASS = {"amp_fac": 2.0, "eps": 1e-8}
_D_ADAM = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "decouple": False}
_D_ADAN = {"betas": [0.98, 0.92, 0.99], "eps": 1e-8, "weight_decay": 0.02, "no_prox": False}
_PREPRINT = _dadaptation("DAdaptAdamPreprint", _D_ADAM | FOUND, "dadaptation.experimental")

OPTIMIZERS: dict[str, Optimizer] = {
    "AdamW": Optimizer("lorabuild.nn.adamw.AdamW", ADAM | {"weight_decay": 0.01}, {"amsgrad": False}),
    "ClybW": Optimizer(
        "lorabuild.nn.clybw.ClybW",
        _COMPASS
        | {"betas": [0.95, 0.95], "weight_decay": 0.1, "centralization": 0.5}
        | {"normalization": 0.5, "normalize_channels": True, "normalization_mode": "full"},
    ),
    "LodeW": Optimizer(
        "lorabuild.nn.clybw.LodeW", _COMPASS | {"betas": [0.9, 0.999], "weight_decay": 0.0, "centralization": 0.0}
    ),
    "Lion": Optimizer("lorabuild.nn.lion.Lion", {"betas": [0.9, 0.99], "weight_decay": 0.0}),
    "Adafactor": Optimizer(
        "transformers.optimization.Adafactor",
        {"eps": [1e-30, 1e-3], "clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None, "weight_decay": 0.0}
        | {"scale_parameter": True, "relative_step": True, "warmup_init": False},
    ),
    "SGDNesterov": Optimizer(
        "torch.optim.SGD", {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0}, fixed={"nesterov": True}
    ),
    "AdamW8bit": _bitsandbytes("AdamW8bit", _BNB_ADAM),
    "PagedAdamW": _bitsandbytes("PagedAdamW", _BNB_ADAM),
    "PagedAdamW8bit": _bitsandbytes("PagedAdamW8bit", _BNB_ADAM),
    "PagedAdamW32bit": _bitsandbytes("PagedAdamW32bit", _BNB_ADAM),
    "Lion8bit": _bitsandbytes("Lion8bit", _BNB_LION),
    "PagedLion8bit": _bitsandbytes("PagedLion8bit", _BNB_LION),
    "SGDNesterov8bit": _bitsandbytes(
        "SGD8bit", {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "min_8bit_size": 4096}, nesterov=True
    ),
    "Prodigy": Optimizer(
        "prodigyopt.Prodigy",
        ADAM
        | {"beta3": None, "weight_decay": 0.0, "decouple": True, "use_bias_correction": False}
        | {"safeguard_warmup": False, "d_coef": 1.0, "slice_p": 1}
        | FOUND,
        extra="prodigy",
        finds_rate=True,
    ),
    "DAdaptation": _PREPRINT,
    "DAdaptAdamPreprint": _PREPRINT,
    "DAdaptAdaGrad": _dadaptation("DAdaptAdaGrad", {"momentum": 0.0, "weight_decay": 0.0, "eps": 1e-6} | FOUND),
    "DAdaptAdam": _dadaptation("DAdaptAdam", _D_ADAM | {"use_bias_correction": False} | FOUND),
    "DAdaptAdan": _dadaptation("DAdaptAdan", _D_ADAN | FOUND),
    "DAdaptAdanIP": _dadaptation("DAdaptAdanIP", _D_ADAN | FOUND, "dadaptation.experimental"),
    "DAdaptLion": _dadaptation("DAdaptLion", {"betas": [0.9, 0.99], "weight_decay": 0.0, "d0": 1e-6}),
    "DAdaptSGD": _dadaptation("DAdaptSGD", {"momentum": 0.0, "weight_decay": 0.0} | FOUND),
    "AdamWScheduleFree": _schedule_free("AdamWScheduleFree", ADAM | {"warmup_steps": 0}),
    "RAdamScheduleFree": _schedule_free("RAdamScheduleFree", ADAM | {"silent_sgd_phase": True}),
    "SGDScheduleFree": _schedule_free("SGDScheduleFree", {"momentum": 0.9, "warmup_steps": 0}),
}
_BY_NAME = {name.casefold(): name for name in OPTIMIZERS}

# What torch.optim has besides: its own arguments are looked at when a training starts.
TORCH = ("Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
_BY_NAME |= {name.casefold(): f"torch.optim.{name}" for name in TORCH}

# argument -> (lowest, highest, whether the highest is allowed)
RANGES = {name: (0.0, 1.0, False) for name in ("betas", "beta1", "beta3", "momentum")} | {
    "weight_decay": (0.0, math.inf, False),
    "amp_fac": (0.0, math.inf, False),
    "centralization": (0.0, 1.0, True),
    "normalization": (0.0, 1.0, True),
    "slice_p": (1, math.inf, False),
    "warmup_steps": (0, math.inf, False),
    "min_8bit_size": (0, math.inf, False),
}
LOW_RATE = 0.1  # below it sd-scripts warns of optimizers that find the rate's scale: they multiply it by about 1
POSITIVE = ("eps", "d0", "d_coef", "growth_rate", "clip_threshold")
CHOICES = {"normalization_mode": ("full", "lerp")}


def canonical(name: str) -> str:
    """The one spelling of an optimizer's name, or a dotted path as it is. Raises ValueError, in a user's words."""
    if not name:  # sd-scripts' own default
        return DEFAULT
    if known := _BY_NAME.get(name.casefold()):
        return known
    if name.casefold() == "fcompass":
        raise ValueError('"FCompass" is not supported: no definition of it is published; "ClybW" and "LodeW" are kin')
    if "." in name.strip("."):
        return name
    names = [*OPTIMIZERS, *TORCH]
    raise ValueError(
        f'expected an optimizer\'s name or a class ("package.module.Class"), got "{name}"{near_miss(name, names)}'
    )


def optimizer(name: str) -> Optimizer:
    """What is known of an optimizer; of a dotted path only its class."""
    return OPTIMIZERS.get(name) or Optimizer(name, {})


def parsed(args: Any) -> Any:
    """sd-scripts' list of "key=value" texts as a table; values are Python literals, a bare word is text."""
    if not isinstance(args, list):
        return args
    found = {}
    for text in args:
        key, sign, value = text.partition("=") if isinstance(text, str) else ("", "", "")
        if not sign or not key.strip():
            raise ValueError(f'expected a table, or a list of "key=value", got {shown(text)} in it')
        found[key.strip()] = _literal(value.strip())
    return found


def _literal(text: str) -> Any:
    if text.casefold() in ("true", "false"):
        return text.casefold() == "true"
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(value) if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    return json.dumps(value, ensure_ascii=False, default=str)


def faults(name: str, args: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(argument, what is wrong with it) of the arguments of an optimizer; of a dotted path's nothing is known here."""
    known = OPTIMIZERS.get(name)
    if known is None:
        return [(key, "expected a plain value") for key, value in args.items() if not plain(value)]
    allowed = {**known.args, **known.rare}
    wrong = []
    for key, value in args.items():
        if key not in allowed:
            wrong.append((key, f"unknown key{near_miss(key, allowed)}; {name} has {', '.join(allowed)}"))
        elif said := _misfit(key, value, allowed[key]):
            wrong.append((key, said))
    return wrong


def resolved(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with their defaults, so that one that is spelled out is no other training."""
    known = optimizer(name)
    merged = {**known.args, **args}
    return {
        key: _as(known.args.get(key), value)
        for key, value in merged.items()
        if value is not None and not (key in known.rare and value == known.rare[key])
    }


def _as(default: Any, value: Any) -> Any:
    """1 -> 1.0 where a number may have a fraction: they are one value."""
    if isinstance(default, list):
        return [float(one) for one in value]
    return float(value) if isinstance(default, float) else value


def warnings(recipe: Mapping[str, Any]) -> list[str]:
    """What can be meant, but seldom is."""
    name, found = recipe["optimizer_type"], []
    rates = [recipe["unet_lr"], recipe["text_encoder_lr"]]
    highest = max(max(rate) if isinstance(rate, list) else rate for rate in rates)
    if optimizer(name).finds_rate and highest <= LOW_RATE:
        found.append(f"recipe: {name} finds the rate itself and multiplies it by {highest:g}: 1 is usual")
    updates, warmup = recipe.get("max_train_steps"), recipe.get("lr_warmup_steps") or 0
    if updates and not recipe.get("max_train_epochs") and not recipe.get("phases") and warmup >= updates:
        found.append(f"recipe.lr_warmup_steps: {warmup} of {updates} updates: the rate never comes to its height")
    return found


def plain(value: Any) -> bool:
    """Is it what JSON can say, and a key can be made of?"""
    if isinstance(value, list):
        return all(map(plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(one) for key, one in value.items())
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _misfit(key: str, value: Any, default: Any) -> str:
    """Why an argument cannot have this value; empty if it can."""
    if value is None and default is None:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else f"expected true or false, got {shown(value)}"
    if isinstance(default, str):
        options = " or ".join(f'"{option}"' for option in CHOICES[key])
        return "" if value in CHOICES[key] else f"expected {options}, got {shown(value)}"
    if isinstance(default, list):
        if not isinstance(value, list) or len(value) != len(default):
            return f"expected a list of {len(default)} numbers, got {shown(value)}"
        return next(filter(None, (_out_of_range(key, one) for one in value)), "")
    if isinstance(default, int) and not (isinstance(value, int) and not isinstance(value, bool)):
        return f"expected a whole number, got {shown(value)}"
    return _out_of_range(key, value)


def _out_of_range(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"expected a number, got {shown(value)}"
    if key in POSITIVE:
        return "" if value > 0 else f"expected more than 0, got {value:g}"
    low, high, closed = RANGES.get(key, (-math.inf, math.inf, True))
    if value < low:
        return f"expected {low:g} or more, got {value:g}"
    if value > high or (value == high and not closed):
        return f"expected {high:g} or less, got {value:g}" if closed else f"expected less than {high:g}, got {value:g}"
    return ""
