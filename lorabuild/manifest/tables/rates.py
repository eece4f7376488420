"""The keys of [recipe] that say how fast it is trained: the optimizer, the rates, their schedule, and phases of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator

from lorabuild.manifest import values
from lorabuild.manifest.tables.table import Count, Part, Rate, Table, off
from lorabuild.manifest.values import Misfit, Misfits
from lorabuild.training import optimizers, schedules

if TYPE_CHECKING:
    from lorabuild.manifest.tables.recipe import RecipeTable

OptimizerName = Annotated[str, PlainValidator(values.named(optimizers.canonical))]
ScheduleName = Annotated[str, PlainValidator(values.named(schedules.canonical))]
DottedClass = Annotated[str, AfterValidator(values.dotted_class)]
Arguments = Annotated[dict[str, Any], PlainValidator(values.arguments)]
TextRates = Annotated[float | list[float], PlainValidator(values.text_rates)]
Share = Annotated[int | float, PlainValidator(values.warmup)]
Above = Annotated[float, Field(gt=0)]

KEPT = {"num_cycles": 0.5}  # what stood in the key of a training at a constant rate before other schedules were there
BY_KEY = ("lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_timescale", "lr_scheduler_min_lr_ratio")
# What a phase takes over from the recipe if it does not say it. A warm-up is of one phase.
SCHEDULE = ("lr_scheduler", "lr_scheduler_type", "lr_scheduler_args", "lr_decay_steps", *BY_KEY)


class PhaseTable(Table):
    """One of [[recipe.phases]]. What it does not say is the recipe's."""

    max_train_steps: Count = Field(description="Updates of this phase.")
    unet_lr: Rate | None = Field(None, description="Learning rate of the U-Net; 0: it stands still in this phase.")
    text_encoder_lr: TextRates | None = Field(None, description="Learning rate of the text encoders, or a list of two.")
    lr_scheduler: ScheduleName | None = Field(None, description="How the rate goes on from this phase's first update.")
    lr_scheduler_args: Arguments | None = Field(None, description="The scheduler's arguments.")
    lr_scheduler_type: DottedClass = off("", "A scheduler's class instead, of torch.optim.lr_scheduler or dotted.")
    lr_scheduler_num_cycles: Above = off(1, "cosine_with_restarts: how often; cosine_with_min_lr: half waves.")
    lr_scheduler_power: Rate = off(1.0, "polynomial: the power.")
    lr_scheduler_timescale: Above | None = off(None, "inverse_sqrt: its time scale in steps; default the warm-up.")
    lr_scheduler_min_lr_ratio: Part | None = off(None, "What part of the rate stays where the schedule ends.")
    lr_warmup_steps: Share = Field(0, description="Steps in which the rate rises from 0, or a part of this phase.")
    lr_decay_steps: Share = off(0, "warmup_stable_decay: steps in which the rate falls at the end, or a part.")


def complete_rates(recipe: RecipeTable) -> None:
    """Resolve optimizer and rates in place. Raises Misfit(s) for what does not go together."""
    known = optimizers.optimizer(recipe.optimizer_type)
    _optimizer_args(recipe)
    for key, value in recipe.network_args.model_dump().items():
        if known.finds_rate and value and key.startswith("loraplus"):
            raise Misfit(
                f"network_args.{key}", f"{recipe.optimizer_type} has one rate for all: LoRA+ does not go with it"
            )
    if known.finds_rate and "learning_rate" not in recipe.model_fields_set:
        recipe.learning_rate = 1.0  # it finds the rate's scale itself
    if recipe.unet_lr is None:
        recipe.unet_lr = recipe.learning_rate
    if recipe.text_encoder_lr is None:
        recipe.text_encoder_lr = recipe.learning_rate


def complete_phases(recipe: RecipeTable, without_text: bool, without_unet: bool) -> None:
    """Resolve the schedule, or the phases, of a recipe with its rates. A part that it is without has none in any phase."""
    if recipe.phases:
        _phase_lengths(recipe)
    for number, phase in enumerate(recipe.phases):
        _take_over(phase, recipe)
        if without_text:
            phase.text_encoder_lr = 0.0
        if without_unet:
            phase.unet_lr = 0.0
        _complete(phase, recipe, f"phases.{number}.")
    if recipe.phases:
        _sum_up(recipe)
    else:
        _complete(recipe, recipe, "")
    if not any(map(_any_rate, (recipe.unet_lr, recipe.text_encoder_lr))):
        raise Misfit("learning_rate", "unet_lr and text_encoder_lr are both 0: nothing would be trained")


def _optimizer_args(recipe: RecipeTable) -> None:
    name = recipe.optimizer_type
    if wrong := optimizers.faults(name, recipe.optimizer_args):
        raise Misfits(*(Misfit(f"optimizer_args.{key}", said) for key, said in wrong))
    recipe.optimizer_args = optimizers.resolved(name, recipe.optimizer_args)
    args = recipe.optimizer_args
    if name == "Adafactor" and args["warmup_init"] and not args["relative_step"]:
        raise Misfit("optimizer_args.warmup_init", "needs relative_step = true")


def _phase_lengths(recipe: RecipeTable) -> None:
    total = sum(phase.max_train_steps for phase in recipe.phases)
    if "max_train_steps" in recipe.model_fields_set and recipe.max_train_steps != total:
        raise Misfit("max_train_steps", f"the phases have {total} steps together, not {recipe.max_train_steps}")
    if recipe.lr_warmup_steps:
        raise Misfit("lr_warmup_steps", "with phases a warm-up is of one phase: set it there")
    recipe.max_train_steps = total


def _take_over(phase: PhaseTable, recipe: RecipeTable) -> None:
    """Give a phase what it does not say. Who says another schedule takes over nothing of the recipe's."""
    if not phase.model_fields_set & {"lr_scheduler", "lr_scheduler_type"}:
        for key in SCHEDULE:
            if key == "lr_scheduler_args" and phase.lr_scheduler_args is not None:
                phase.lr_scheduler_args = recipe.lr_scheduler_args | phase.lr_scheduler_args
            elif key not in phase.model_fields_set:
                setattr(phase, key, getattr(recipe, key))
    phase.lr_scheduler = phase.lr_scheduler or schedules.DEFAULT
    phase.lr_scheduler_args = phase.lr_scheduler_args or {}
    phase.unet_lr = recipe.unet_lr if phase.unet_lr is None else phase.unet_lr
    te = recipe.text_encoder_lr if phase.text_encoder_lr is None else phase.text_encoder_lr
    phase.text_encoder_lr = _one_if_equal(te)


def _complete(table: RecipeTable | PhaseTable, recipe: RecipeTable, path: str) -> None:
    """Check a schedule, and say it by `lr_scheduler_args` and numbers of updates alone."""
    said = {key: getattr(table, key) for key in (*SCHEDULE, "lr_warmup_steps")}
    rates = {"unet_lr": table.unet_lr, "text_encoder_lr": table.text_encoder_lr}
    wrong = _class_faults(said) if table.lr_scheduler_type else schedules.faults(said)
    wrong += _optimizer_faults(said | rates, recipe)
    if wrong:
        raise Misfits(*(Misfit(f"{path}{key}", text) for key, text in wrong))
    if total := table.max_train_steps:  # epochs are counted when the data set is known; parts stay parts till then
        table.lr_warmup_steps = schedules.share(table.lr_warmup_steps, total)
        table.lr_decay_steps = schedules.share(table.lr_decay_steps, total)
        if table.lr_decay_steps and table.lr_warmup_steps + table.lr_decay_steps > total:
            raise Misfit(f"{path}lr_decay_steps", f"warm-up and decay are longer than {total} steps")
    if table.lr_scheduler_type:
        return
    set_rate = {"learning_rate": recipe.learning_rate} if "learning_rate" in recipe.model_fields_set else {}
    found = schedules.arguments(said | rates | set_rate)
    table.lr_scheduler_args = found or (KEPT.copy() if table is recipe and table.lr_scheduler == "constant" else {})
    for key in BY_KEY:
        setattr(table, key, schedules.KEY_DEFAULTS[key])


def _class_faults(said: dict[str, Any]) -> list[tuple[str, str]]:
    """What does not go with a scheduler's own class: it reads its arguments and nothing else."""
    wrong = [(key, "lr_scheduler_type does not read it") for key in BY_KEY if said[key] != schedules.KEY_DEFAULTS[key]]
    wrong += [(key, "lr_scheduler_type does not read it") for key in ("lr_decay_steps", "lr_warmup_steps") if said[key]]
    if said["lr_scheduler"] != schedules.DEFAULT:
        wrong.append(("lr_scheduler_type", f'lr_scheduler is "{said["lr_scheduler"]}": set one of them'))
    return wrong


def _optimizer_faults(said: dict[str, Any], recipe: RecipeTable) -> list[tuple[str, str]]:
    """What does not go with the optimizer."""
    name, args = recipe.optimizer_type, recipe.optimizer_args
    known, schedule = optimizers.optimizer(name), schedules.family(said["lr_scheduler"])
    scheduled = "lr_scheduler_type" if said["lr_scheduler_type"] else "lr_scheduler"
    varies = said["lr_scheduler_type"] or schedule not in ("constant", "adafactor")
    if schedule == "adafactor" and not (name == "Adafactor" and args["relative_step"]):
        return [("lr_scheduler", '"adafactor" is for optimizer_type "Adafactor" with relative_step = true')]
    if name == "Adafactor" and args["relative_step"] and varies:
        advice = 'set "constant", or optimizer_args.relative_step = false'
        return [(scheduled, f"Adafactor sets its own rates with relative_step: {advice}")]
    if known.schedule_free and varies:
        return [(scheduled, f'{name} needs no schedule: set "constant"; its warm-up is optimizer_args.warmup_steps')]
    flat = {rate for rate in (said["unet_lr"], *_each(said["text_encoder_lr"])) if rate}
    if known.finds_rate and len(flat) > 1:
        return [("optimizer_type", f"{name} has one rate for all parts: set unet_lr and text_encoder_lr to one, or 0")]
    return []


def _sum_up(recipe: RecipeTable) -> None:
    """A recipe with phases says of itself what holds in the first, so that its unused defaults make no difference.

    A part has the highest rate of all phases: one that is trained in any is trained.
    """
    first = recipe.phases[0]
    for key in (*SCHEDULE, "lr_warmup_steps"):
        setattr(recipe, key, getattr(first, key))
    recipe.unet_lr = max(phase.unet_lr for phase in recipe.phases)
    both = [[*_each(phase.text_encoder_lr)] * 2 for phase in recipe.phases]
    recipe.text_encoder_lr = _one_if_equal([max(one[0] for one in both), max(one[1] for one in both)])


def _one_if_equal(rate: float | list[float]) -> float | list[float]:
    return rate[0] if isinstance(rate, list) and rate[0] == rate[1] else rate


def _each(rate: float | list[float]) -> list[float]:
    return rate if isinstance(rate, list) else [rate]


def _any_rate(rate: float | list[float]) -> bool:
    return any(_each(rate))
