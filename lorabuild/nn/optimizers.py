"""Make an optimizer by name or dotted path, show and store weights as it means them, and keep its state."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lorabuild.errors import JobError, near_miss
from lorabuild.nn.schedule import Rates
from lorabuild.training import optimizers as known
from lorabuild.training.phases import phases

KEY = "recipe.optimizer_type"
Groups = list[dict[str, Any]]  # each {"params": [...], "name": ..., "lr": ...}


class Grouped(Protocol):
    """What an adapter has: {"params", "name", "lr"} of what a recipe trains at one rate; frozen ones are left out."""

    def groups(self, recipe: Mapping[str, Any]) -> Groups: ...


def make(recipe: Mapping[str, Any], groups: Groups) -> Optimizer:
    """The optimizer of a recipe over `groups`. Raises JobError, in one line, where it cannot be had."""
    name, args = recipe["optimizer_type"], dict(recipe.get("optimizer_args") or {})
    about = known.optimizer(name)
    found = _class(name, about)
    keys = _keys(found)
    if name not in known.OPTIMIZERS and keys is not None:
        for key in args.keys() - keys:
            raise JobError(f"recipe.optimizer_args.{key}: unknown key{near_miss(key, keys)}; {name} has {_list(keys)}")
    if about.finds_rate and len({group["lr"] for group in groups if group["lr"]}) > 1:
        raise JobError(f"{KEY}: {name} has one rate for all parts: give all groups one rate, or 0")
    groups = [dict(group) for group in groups]  # torch writes its defaults into what it is given
    kwargs = {**about.fixed, **{key: tuple(v) if isinstance(v, list) else v for key, v in args.items()}}
    if args.get("relative_step"):  # Adafactor's own rates
        groups = [{key: value for key, value in group.items() if key != "lr"} for group in groups]
        kwargs["lr"] = None
    elif keys is None or "lr" in keys:
        kwargs["lr"] = max(group["lr"] for group in groups)
    try:
        optimizer = found(groups, **kwargs)
    except Exception as error:  # whatever a class of somebody else's raises: it cannot be made so
        raise JobError(_said(name, error)) from None
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def grouped(recipe: Mapping[str, Any], adapter: Grouped) -> tuple[Groups, list[list[float]]]:
    """The groups of a training, and phase -> group -> rate before the schedule.

    What has equal rates in all phases is a group; its name is that of the recipe as a whole.
    """
    whole = phases({key: value for key, value in recipe.items() if key != "phases"})[0]
    rate_in = [
        {id(parameter): group["lr"] for group in adapter.groups(phase) for parameter in group["params"]}
        for phase in phases(recipe)
    ]
    found: dict[Any, dict[str, Any]] = {}
    for group in adapter.groups(whole):
        for parameter in group["params"]:
            rates = tuple(rates.get(id(parameter), 0.0) for rates in rate_in)
            if any(rates):
                new = {**group, "params": [], "lr": max(rates)}
                found.setdefault((group["name"], rates), new)["params"].append(parameter)
    return list(found.values()), [[rates[phase] for _, rates in found] for phase in range(len(rate_in))]


def try_out(recipe: Mapping[str, Any], device: str = "cpu") -> None:
    """Make the optimizer and the schedule, and do one update of a small tensor. Raises JobError, in one line."""
    try_schedule(recipe, try_optimizer(recipe, device))


def try_schedule(recipe: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Work out the rates of all updates. Raises JobError, in one line."""
    rates = Rates(recipe, [[1.0]] * len(phases(recipe)), optimizer)
    for update in range(recipe["max_train_steps"]):
        rates.at(update)


def try_optimizer(recipe: Mapping[str, Any], device: str = "cpu") -> Optimizer:
    """An optimizer after one update of a small tensor at each of the recipe's rates. Raises JobError, in one line."""
    groups = []
    for rate in _rates(recipe):  # some take only one, and say so when they are stepped
        # as many numbers as make an optimizer of bitsandbytes keep its state in 8 bits
        parameter = Parameter(torch.zeros(64, 64, device=device))
        parameter.grad = torch.full_like(parameter, 1e-3)
        groups.append({"params": [parameter], "name": "unet", "lr": rate})
    optimizer = make(recipe, groups)
    try:
        optimizer.step()
        with averaged(optimizer):
            state(optimizer, {str(number): group["params"][0] for number, group in enumerate(groups)})
        return optimizer
    except JobError:
        raise
    except Exception as error:
        raise JobError(f"{_said(recipe['optimizer_type'], error)} (on {device})") from None


def _rates(recipe: Mapping[str, Any]) -> list[float]:
    """The rates that parts of the adapter have, each once and none that is 0."""
    text = recipe["text_encoder_lr"]
    rates = [recipe["unet_lr"], *(text if isinstance(text, list) else [text])]
    return sorted({rate for rate in rates if rate}) or [1e-4]


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Within it the parameters are what is to be saved, shown and measured: of a schedule-free optimizer its averages.

    Afterwards they are what they were, to the bit: to go back by the optimizer's own formula would round, and then
    a training would depend on which of its snapshots are saved.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def finish(optimizer: Optimizer) -> None:
    """Leave the parameters as they are to be saved. The training is over."""
    if hasattr(optimizer, "eval"):
        optimizer.eval()


def rates_now(optimizer: Optimizer) -> dict[str, dict[str, float]]:
    """What is logged of the last update: {"lr": {group: rate}}, and {"d*lr": …} where an optimizer finds the scale d."""
    found: dict[str, dict[str, float]] = {"lr": {}}
    for number, group in enumerate(optimizer.param_groups):
        name = group.get("logged") or group.get("name", str(number))
        rate = group["lr"]
        if group.get("relative_step") and (
            states := [optimizer.state[p] for p in group["params"] if p in optimizer.state]
        ):
            rate = optimizer._get_lr(
                group, states[0]
            )  # Adafactor's rates differ by tensor: sd-scripts, too, logs the first's
        found["lr"][name] = float(rate or 0.0)
        if "d" in group:
            found.setdefault("d*lr", {})[name] = float(group["d"] * rate)
    return found


def state(optimizer: Optimizer, parameters: Mapping[str, Parameter]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that an optimizer remembers: tensors by `<parameter>|<key>`, and the rest as JSON.

    It is what `state` and `param_groups` hold; what a class keeps elsewhere is not in it. Raises JobError for what is
    neither a tensor nor a plain value.
    """
    tensors: dict[str, Tensor] = {}
    own: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            packed = _pack(value, f"{name}|{key}", tensors)
            if packed != _tensor(parameter):  # the rule: nothing is said of it
                own.setdefault(name, {})[key] = packed
    groups = [
        {key: _pack(value, f"|{number}|{key}", tensors) for key, value in group.items() if key != "params"}
        for number, group in enumerate(optimizer.param_groups)
    ]
    return _apart(tensors), {"state": own, "groups": groups}


def restore(
    optimizer: Optimizer, parameters: Mapping[str, Parameter], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Take over a state, in place and to the bit. (load_state_dict would cast what is not of the parameter's type.)"""
    optimizer.state.clear()
    for at, tensor in tensors.items():
        name, bar, key = at.partition("|")
        if bar and name and "|" not in key:
            optimizer.state[parameters[name]][key] = tensor.clone().to(parameters[name].device)
    for name, own in facts["state"].items():
        for key, packed in own.items():
            parameter = parameters[name]
            optimizer.state[parameter][key] = _unpack(packed, f"{name}|{key}", tensors, parameter.device)
    for number, (group, saved) in enumerate(zip(optimizer.param_groups, facts["groups"], strict=True)):
        device = group["params"][0].device
        group |= {key: _unpack(packed, f"|{number}|{key}", tensors, device) for key, packed in saved.items()}


def _pack(value: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; tensors in it go to `tensors`."""
    if isinstance(value, Tensor):
        tensors[at] = value
        return _tensor(value)
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(one, f"{at}|{number}", tensors) for number, one in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _pack(one, f"{at}|{key}", tensors) for key, one in value.items()}}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise JobError(f"{KEY}: its state cannot be saved: {at.rpartition('|')[2]} is a {type(value).__name__}")


def _tensor(like: Tensor) -> dict[str, str]:
    """Where a tensor lies: some keep counters on the CPU while the parameters are on a GPU."""
    return {"tensor": like.device.type}


def _unpack(packed: Any, at: str, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    match packed:
        case {"tensor": kind}:
            return tensors[at].clone().to(device if kind == device.type else kind)
        case {"list": values}:
            return [_unpack(one, f"{at}|{number}", tensors, device) for number, one in enumerate(values)]
        case {"tuple": values}:
            return tuple(_unpack(one, f"{at}|{number}", tensors, device) for number, one in enumerate(values))
        case {"dict": values}:
            return {key: _unpack(one, f"{at}|{key}", tensors, device) for key, one in values.items()}
    return packed


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is one tensor under several names as several: bitsandbytes shares a table between all parameters."""
    seen: set[int] = set()
    found = {}
    for at, tensor in tensors.items():
        place = tensor.data_ptr()
        found[at] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _class(name: str, about: known.Optimizer) -> Any:
    module, _, attribute = about.path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        if about.extra:
            raise JobError(f'{KEY}: {name} needs a package: pip install "lorabuild[{about.extra}]" ({error})') from None
        raise JobError(f"{KEY}: {name}: {error}") from None
    except (AttributeError, ValueError):
        names = dir(importlib.import_module(module)) if module else []
        raise JobError(f"{KEY}: {name}: no such class{near_miss(attribute, names)}") from None
    except Exception as error:  # a package may fail in many ways on a machine that it does not fit
        raise JobError(_said(name, error)) from None


def _keys(found: Any) -> Sequence[str] | None:
    """The arguments of a class, None if it takes any."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        return None
    return [*signature.parameters][1:]


def _list(keys: Sequence[str] | None) -> str:
    return ", ".join(keys or ())


def _said(name: str, error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{KEY}: {name} cannot be used: {type(error).__name__}: {first}"
