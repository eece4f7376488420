"""Train an adapter: the loop over updates, which knows neither files nor projects."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lorabuild.errors import Interrupted, JobError
from lorabuild.lora.adapter_shape import trained_parts as trained_parts
from lorabuild.nn.adapter import Adapter
from lorabuild.nn.base import Base
from lorabuild.nn.batches import Data, MicroBatch
from lorabuild.nn.feed import Feed
from lorabuild.nn.flat import Flat
from lorabuild.nn.loss_scale import LossScale
from lorabuild.nn.losses import mean_loss, sample_losses
from lorabuild.nn.objective import Objective, plain
from lorabuild.nn.optimizers import averaged, finish, grouped, make, rates_now, restore
from lorabuild.nn.optimizers import state as optimizer_state
from lorabuild.nn.parallel import Alone, Ranks, part_of
from lorabuild.nn.resume import State, StateFile
from lorabuild.nn.schedule import Rates
from lorabuild.training.order import Sample, micro_batches
from lorabuild.training.validation import points

LOGGED = ("textencoder", "unet")  # always logged, as sd-scripts does: 0 for one that is frozen


@dataclass(frozen=True)
class Training:
    """What is trained on what. `recipe` holds sd-scripts' arguments; `device` is "cpu" or "cuda".

    `prediction_type` is what the base predicts: "epsilon" or "v_prediction".
    """

    base: Base
    adapter: Adapter
    data: Data
    recipe: Mapping[str, Any]
    device: str = "cpu"
    prediction_type: str = "epsilon"
    ranks: Alone | Ranks = field(default_factory=Alone)  # the processes that work on it, this one among them
    held_back: Data | None = None  # images that are not trained on, which the held-out loss is of


@dataclass(frozen=True)
class Observer:
    """Who is told while a training runs.

    `snapshot(step)` is called after each of the updates `steps`, when the adapter is what that step's file should hold.
    `stopping()` is asked before each micro-batch: the training then keeps the state of its last update and ends. After
    update `last`, if it is not the recipe's own last one, nothing is wanted any more. `logged(record)` is told all that
    the log says, as it is made, and the held-out loss every `validate_every` updates, too, which the log does not have.
    `draw(step)` is called after each of the updates `drawn`, 0 is before the first: it looks at the adapter, draws with
    the base, and leaves both as they are.
    """

    steps: Collection[int] = ()
    snapshot: Callable[[int], None] = lambda step: None
    progress: Callable[[int, int, str], None] = lambda done, total, text: None
    stopping: Callable[[], bool] = lambda: False
    last: int | None = None
    logged: Callable[[Mapping[str, Any]], None] = lambda record: None
    validate_every: int = 0
    drawn: Collection[int] = ()
    draw: Callable[[int], None] = lambda step: None


def train(training: Training, observer: Observer, state_file: StateFile, state: State | None) -> list[dict[str, Any]]:
    """Train to the end, from `state` if there is one. The log: a record a step, and two of the held-out loss.

    An update takes exactly `gradient_accumulation_steps` micro-batches, across the end of an epoch if need be; its loss
    is the mean over its images. Where gradients overflow in fp16, the update is made again at half the loss scale. The
    state is saved whenever that is cheap. A training that is taken up from a state ends with the same bytes as an
    undisturbed one, on a CPU at an equal number of threads.
    Raises JobError, with the step, when a loss or a gradient is not finite, and Interrupted when the observer stops it.
    """
    recipe = training.recipe
    loop = _Loop(training, observer.stopping, observer.logged)
    if state is None:
        loop.measure("before")
        if 0 in observer.drawn:
            observer.draw(0)
    else:
        loop.restore(state)
    measured = points(recipe)
    accumulate = recipe["gradient_accumulation_steps"]
    dealt = micro_batches(training.data.images, recipe["train_batch_size"], recipe["seed"], loop.step * accumulate)
    last = recipe["max_train_steps"] if observer.last is None else observer.last
    coming = list(islice(dealt, accumulate))
    while loop.step < last:
        now, coming = coming, list(islice(dealt, accumulate)) if loop.step + 1 < last else []
        try:
            loss = loop.update(now, coming)
        except Interrupted:  # parameters and moments are those of the last update: gradients alone are lost
            if loop.step:
                state_file.save(loop.state())
            raise Interrupted(f"step {loop.step} of {recipe['max_train_steps']}" if loop.step else "") from None
        if not training.ranks.leads:
            continue
        if loop.step in observer.steps:  # before the state: a training that goes on from there has it behind it
            with averaged(loop.optimizer):
                observer.snapshot(loop.step)
        if loop.step in measured:
            loop.measure("during")
        elif observer.validate_every and loop.step % observer.validate_every == 0:
            observer.logged(loop.held_out("during"))
        if state_file.due():
            state_file.save(loop.state())
        if loop.step in observer.drawn:
            with averaged(loop.optimizer):
                observer.draw(loop.step)
        observer.progress(loop.step, recipe["max_train_steps"], f"loss {loss:.4f}")
    if last == recipe["max_train_steps"]:
        loop.measure("after")
    finish(loop.optimizer)
    return loop.log


class _Loop:
    """The state of a training, and how an update changes it."""

    def __init__(
        self,
        training: Training,
        stopping: Callable[[], bool] = lambda: False,
        logged: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ):
        self.training, self.stopping, self.logged = training, stopping, logged
        recipe, adapter = training.recipe, training.adapter
        self.objective = Objective.of(recipe, training.prediction_type, training.device)
        self.yardstick = Objective.of(plain(recipe), training.prediction_type, training.device)
        self.step = 0  # updates done
        self.log: list[dict[str, Any]] = []
        self.parameters = adapter.parameters()
        groups, rates = grouped(recipe, adapter)
        self.optimizer = make(recipe, groups)
        self.rates = Rates(recipe, rates, self.optimizer)
        self.flat = Flat.of(self.optimizer)
        trained = {id(parameter) for parameter in self.flat.parameters}
        for parameter in self.parameters.values():
            parameter.requires_grad_(id(parameter) in trained)  # what has no rate in any phase needs no gradient
        self.scale = LossScale.of(recipe["mixed_precision"])
        self.feed = Feed(training)

    def update(
        self, dealt: Sequence[tuple[int, list[Sample]]], coming: Sequence[tuple[int, list[Sample]]] = ()
    ) -> float:
        """One optimizer step over the micro-batches `dealt` (epoch, samples); the mean loss of their images.

        Nothing waits for the device but one read, of all losses and the norm of the gradients. While the device still
        works, before that read, the first batch of the update that is `coming` is made.
        """
        for group, settings in zip(self.optimizer.param_groups, self.rates.at(self.step), strict=True):
            group |= settings
        images = sum(len(samples) for _, samples in dealt)
        worked: list[int] = []  # on these micro-batches: with several processes each has its own

        def work(micro: int, part: slice) -> Tensor:
            if self.stopping():
                raise Interrupted
            worked.append(micro)
            self.training.adapter.at(self.step, micro, *([part.start] if part.start else []))
            batch = self.feed.batch(self.step, micro, *dealt[micro])
            share = self._losses(part_of(batch, part), self.objective).sum() / images
            self.scale.scaled(share).backward()
            return share.detach()

        sizes, done = [len(samples) for _, samples in dealt], None
        while done is None:  # after an overflow only the scale is another: the same samples, noise and rate once more
            losses = self.training.ranks.update(sizes, work, self.flat)
            if worked and worked[0] < len(coming):
                self.feed.prepare(self.step + 1, worked[0], *coming[worked[0]])
            done = self._apply_gradients(losses)
        loss, norm = done
        self.step = self.feed.done = self.step + 1
        rates = {what: {name: _rounded(rate) for name, rate in of.items()} for what, of in self._rates_now().items()}
        record = {"event": "step", "step": self.step, "loss": _rounded(loss), **rates}
        record |= {"grad_norm": _rounded(norm), "images": images, **self._limit_norms()}
        if self.scale.enabled:
            record["loss_scale"] = self.scale.scale
        self._tell(record)
        return loss

    def measure(self, when: str) -> None:
        """Log the held-out loss."""
        if self.training.ranks.leads:
            self._tell(self.held_out(when))

    @torch.no_grad()
    def held_out(self, when: str) -> dict[str, Any]:
        """A record of the mean loss over the held-out micro-batches: of images that are held back, if there are any.

        It is the plain one, so that recipes can be compared by it.
        """
        self.training.adapter.measuring()
        with averaged(self.optimizer):
            mean = mean_loss(self.feed.held_out(), lambda batch: self._losses(batch, self.yardstick))
        loss = _finite(f"step {self.step}: the held-out loss", mean)
        step = {"step": self.step} if when == "during" else {}
        return {"event": "held_out", "when": when, **step, "loss": _rounded(loss)}

    def _tell(self, record: dict[str, Any]) -> None:
        self.log.append(record)
        self.logged(record)

    def state(self) -> State:
        moments, optimizer = optimizer_state(self.optimizer, self.parameters)
        facts = {"step": self.step, "log": self.log, "scale": self.scale.state(), "optimizer": optimizer}
        return State({**self.training.adapter.tensors(), **moments}, facts)

    def restore(self, state: State) -> None:
        self.step, self.log = state.facts["step"], list(state.facts["log"])
        self.feed.done = self.step
        for record in self.log:
            self.logged(record)
        self.scale.restore(state.facts["scale"])
        self.training.adapter.load(state.tensors)
        restore(self.optimizer, self.parameters, state.tensors, state.facts["optimizer"])

    def _rates_now(self) -> dict[str, dict[str, float]]:
        found = rates_now(self.optimizer)
        return found | {"lr": dict.fromkeys(LOGGED, 0.0) | found["lr"]}

    def _losses(self, batch: MicroBatch, objective: Objective) -> Tensor:
        """The loss of each sample [B], with the adapter as it is."""
        training, batch = self.training, self.feed.ready(batch)
        precision, learns_text = training.recipe["mixed_precision"], training.adapter.trains_text
        return sample_losses(training.base, batch, objective, precision, training.device, learns_text)

    def _limit_norms(self) -> dict[str, Any]:
        """scale_weight_norms, and what of it goes into the log, by sd-scripts' names."""
        limit = self.training.recipe.get("scale_weight_norms")
        if not limit:
            return {}
        norms = self.training.adapter.limit_norms(limit)
        keys = {"keys_scaled": norms.scaled, "average_key_norm": norms.mean, "max_key_norm": norms.largest}
        return {"max_norm": {key: _rounded(value) for key, value in keys.items()}}

    def _apply_gradients(self, losses: Tensor) -> tuple[float, float] | None:
        """Clip over all parameters at once and step; the sum of the losses, and the norm before clipping.

        None where gradients overflowed in fp16, which are to be made again: then nothing but the scale has changed.
        """
        limit = self.training.recipe["max_grad_norm"] or math.inf  # 0: no limit
        self.flat.settle()
        self.scale.unscale([self.flat.gradients])
        total = self.flat.norm()
        *each, norm = torch.cat([losses, total[None]]).tolist()  # the one wait for the device
        loss = _finite(f"step {self.step + 1}: the loss", sum(each))
        overflowed = self.scale.overflowed(norm)
        if not overflowed:
            _finite(f"step {self.step + 1}: the norm of the gradients", norm)
            if norm > limit:
                self.flat.scale(total, limit)
            self.optimizer.step()
            self.scale.updated()
        self.flat.clear()
        if overflowed:  # told in the job's log
            print(f"step {self.step + 1}: fp16 overflowed; again at loss scale {self.scale.scale:g}")
            return None
        return loss, norm


def _finite(what: str, value: float) -> float:
    if math.isfinite(value):
        return value
    advice = 'lower unet_lr and text_encoder_lr, or set mixed_precision = "bf16" or "no"'
    raise JobError(f"{what} is not finite ({value}): {advice}")


def _rounded(value: float) -> float | None:
    """Six digits, as many as mean something in float32. None, null in JSON, for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
