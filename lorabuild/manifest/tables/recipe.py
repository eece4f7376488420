"""[recipe]: how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lorabuild.manifest import values
from lorabuild.manifest.tables.rates import (
    Above,
    Arguments,
    DottedClass,
    OptimizerName,
    PhaseTable,
    ScheduleName,
    Share,
    TextRates,
    complete_rates,
)
from lorabuild.manifest.tables.table import Count, Part, Rate, Table, Whole, off


class NetworkArgs(Table):
    algo: Annotated[Literal["locon"], BeforeValidator(values.algo)] = Field("locon", description="LyCORIS's algorithm.")
    preset: Literal["full"] = Field("full", description="LyCORIS's preset: which layers get an adapter.")
    conv_dim: Count | None = Field(None, description="Rank of 3x3 convolutions; default network_dim.")
    conv_alpha: Rate | None = Field(None, description="Alpha of 3x3 convolutions; default network_alpha.")


class RecipeTable(Table):
    network_module: Literal["lycoris.kohya"] = Field("lycoris.kohya", description="What makes the adapter.")
    network_dim: Count = Field(8, description="Rank of the adapter.")
    network_alpha: Rate = Field(
        1.0, description="The adapter's effect is scaled by alpha / rank; 0 stands for the rank."
    )
    network_args: NetworkArgs = Field(default_factory=NetworkArgs, description="LyCORIS's arguments.")
    optimizer_type: OptimizerName = Field(
        "AdamW", description='The optimizer; upper and lower case do not count. Or a class: "package.module.Class".'
    )
    optimizer_args: Arguments = Field(
        default_factory=dict, description='Its arguments: a table, or sd-scripts\' list of "key=value".'
    )
    learning_rate: Rate = Field(1e-4, description="What unet_lr and text_encoder_lr are if they are not set.")
    unet_lr: Rate | None = Field(None, description="Learning rate of the U-Net; default learning_rate, 0 freezes it.")
    text_encoder_lr: TextRates | None = Field(
        None,
        description="Learning rate of both text encoders, or a list of two; default learning_rate, 0 freezes one.",
    )
    lr_scheduler: ScheduleName = Field("constant", description="How the learning rate goes on.")
    lr_scheduler_args: Arguments = Field(default_factory=dict, description="The scheduler's arguments.")
    lr_scheduler_type: DottedClass = off("", "A scheduler's class instead, of torch.optim.lr_scheduler or dotted.")
    lr_scheduler_num_cycles: Above = off(1, "cosine_with_restarts: how often; cosine_with_min_lr: half waves.")
    lr_scheduler_power: Rate = off(1.0, "polynomial: the power.")
    lr_scheduler_timescale: Above | None = off(None, "inverse_sqrt: its time scale in steps; default the warm-up.")
    lr_scheduler_min_lr_ratio: Part | None = off(None, "What part of the rate stays where the schedule ends.")
    lr_warmup_steps: Share = Field(
        0, description='Steps in which the rate rises from 0; below 1, or "10%", a part of max_train_steps.'
    )
    lr_decay_steps: Share = off(0, "warmup_stable_decay: steps in which the rate falls at the end, or a part.")
    max_train_steps: Count = Field(1600, description="Updates of the weights; with phases, their sum.")
    phases: list[PhaseTable] = off([], "[[recipe.phases]]: trainings of the rates, one after another, over one run.")
    train_batch_size: Count = Field(1, description="Images a forward pass.")
    gradient_accumulation_steps: Count = Field(1, description="Forward passes an update.")
    multires_noise_iterations: Whole = Field(0, description="Levels of pyramid noise; 0 is plain noise.")
    multires_noise_discount: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="How much each level of pyramid noise weighs of the one before."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="Precision of the forward pass.")
    save_precision: Annotated[Literal["fp32", "fp16", "bf16"], BeforeValidator(values.save_precision)] = Field(
        "fp16", description='Precision of the LoRA files; "float" is fp32.'
    )
    save_every_n_steps: Count | None = Field(None, description="Save a snapshot every so many steps.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        42, description="All that is random follows from it. sd-scripts draws one where none is set; here it is 42."
    )
    max_grad_norm: Rate = Field(1.0, description="Longer gradients are scaled down to this norm; 0 leaves them.")
    gradient_checkpointing: bool = Field(False, description="Saves memory for time; the result is the same.")

    @model_validator(mode="after")
    def _complete(self) -> RecipeTable:
        if self.multires_noise_iterations == 0:
            self.multires_noise_discount = 0.3  # it weighs nothing: another value is no other training
        complete_rates(self)
        convolutions = self.network_args
        convolutions.conv_dim = convolutions.conv_dim or self.network_dim
        if convolutions.conv_alpha is None:
            convolutions.conv_alpha = self.network_alpha
        convolutions.conv_alpha = convolutions.conv_alpha or float(convolutions.conv_dim)
        self.network_alpha = self.network_alpha or float(self.network_dim)
        return self
