"""[recipe]: how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from lorabuild.manifest import values
from lorabuild.manifest.tables import length, objective
from lorabuild.manifest.tables.network import NetworkArgs, settle
from lorabuild.manifest.tables.table import Count, Part, Rate, Table, Text, Whole, off
from lorabuild.manifest.values import Misfit, Misfits


class OptimizerArgs(Table):
    betas: Annotated[list[Part], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="How slowly the running means of gradient and squared gradient forget."
    )
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="Keeps the division by the root mean square finite.")
    weight_decay: Rate = Field(0.01, description="Part of a weight, times the learning rate, that each update removes.")


class SchedulerArgs(Table):
    num_cycles: Annotated[float, Field(gt=0)] = Field(
        0.5, description="Cosine: waves in the whole training; 0.5 falls to zero, 0.375 to 0.146."
    )


class RecipeTable(Table):
    network_module: Literal["lycoris.kohya"] = Field("lycoris.kohya", description="What makes the adapter.")
    network_dim: Count = Field(8, description="Rank of the adapter.")
    network_alpha: Rate = Field(
        1.0, description="The adapter's effect is scaled by alpha / rank; 0 stands for the rank."
    )
    network_args: NetworkArgs = Field(default_factory=NetworkArgs, description="LyCORIS's arguments.")
    optimizer_type: Annotated[Literal["AdamW"], BeforeValidator(values.optimizer)] = Field(
        "AdamW", description="The optimizer; upper and lower case do not count."
    )
    optimizer_args: OptimizerArgs = Field(default_factory=OptimizerArgs, description="The optimizer's arguments.")
    learning_rate: Rate = Field(1e-4, description="What unet_lr and text_encoder_lr are if they are not set.")
    unet_lr: Rate | None = Field(None, description="Learning rate of the U-Net; default learning_rate, 0 freezes it.")
    text_encoder_lr: Annotated[float | list[float] | None, PlainValidator(values.text_rates)] = Field(
        None, description="Learning rate of both text encoders, or a list of two; default learning_rate, 0 freezes."
    )
    network_train_unet_only: bool = off(False, "text_encoder_lr is 0, whatever is set.")
    network_train_text_encoder_only: bool = off(False, "unet_lr is 0, whatever is set.")
    network_dropout: Part = off(0.0, "sd-scripts' name for network_args.dropout.")
    scale_weight_norms: Annotated[float, Field(gt=0)] | None = off(
        None, "After each update, layers whose change has a larger norm are scaled down to this one; 1 is usual."
    )
    lr_scheduler: Literal["constant", "cosine"] = Field("constant", description="How the learning rate goes on.")
    lr_scheduler_args: SchedulerArgs = Field(default_factory=SchedulerArgs, description="The scheduler's arguments.")
    lr_warmup_steps: Annotated[int | float, PlainValidator(values.warmup)] = Field(
        0, description="Steps in which the rate rises from 0; below 1 a part of max_train_steps."
    )
    max_train_steps: Count | None = Field(1600, description="Updates of the weights.")
    max_train_epochs: Count | None = off(
        None, "In place of max_train_steps: passes over the data, each sample exactly once in each."
    )
    init: Text | None = off(
        None,
        "The LoRA that the training continues: a project, or a .safetensors file seen from the manifest. Its ranks and "
        "alphas count, not network_dim and its like.",
    )
    network_weights: Text | None = off(None, "sd-scripts' name for init.")
    dim_from_weights: bool = off(False, "sd-scripts' word for what init always does.")
    train_batch_size: Count = Field(1, description="Images a forward pass.")
    gradient_accumulation_steps: Count = Field(1, description="Forward passes an update.")
    multires_noise_iterations: Whole = Field(0, description="Levels of pyramid noise; 0 is plain noise.")
    multires_noise_discount: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="How much each level of pyramid noise weighs of the one before."
    )
    pyramid_std: Literal["batch", "sample"] = off(
        "batch", "What pyramid noise has standard deviation 1 over: the whole batch, as in sd-scripts, or each sample."
    )
    noise_offset: Rate = off(0.0, "How much a channel's noise is shifted as a whole, at random; 0 is plain noise.")
    noise_offset_random_strength: bool = off(False, "Draw the strength anew for each batch, from 0 to noise_offset.")
    adaptive_noise_scale: float = off(
        0.0, "Added to noise_offset for each unit of a channel's absolute mean; needs noise_offset."
    )
    ip_noise_gamma: Rate = off(0.0, "How much more noise the input has than the target knows of: 0.1 is usual.")
    ip_noise_gamma_random_strength: bool = off(
        False, "Draw the strength anew for each batch, from 0 to ip_noise_gamma."
    )
    min_timestep: Annotated[int, Field(ge=0, le=1000)] = off(0, "The first timestep that is drawn; 0 is the image.")
    max_timestep: Annotated[int, Field(ge=0, le=1000)] = off(
        1000, "The first timestep that is no longer drawn; equal to min_timestep, the only one that is."
    )
    v_parameterization: bool | None = Field(
        None,
        exclude=True,
        description="sd-scripts' switch for v-prediction: here the base says it, and this must agree.",
    )
    zero_terminal_snr: bool = off(False, "Leave nothing of the image at the last timestep; for v-prediction.")
    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = off("l2", "How the error of a pixel is counted.")
    huber_schedule: Literal["snr", "exponential", "constant"] = off(
        "snr", "How the threshold of huber and smooth_l1 goes with the timestep."
    )
    huber_c: Annotated[float, Field(gt=0)] = off(0.1, "The threshold of huber and smooth_l1 at the last timestep.")
    huber_scale: Annotated[float, Field(gt=0)] = off(
        1.0, 'Multiplies the threshold of the schedules "exponential" and "constant".'
    )
    min_snr_gamma: Rate = off(0.0, "Weigh timesteps by min-SNR: 5 is usual; 0 weighs all alike.")
    debiased_estimation_loss: bool = off(False, "Weigh timesteps by debiased estimation: the noisy ones more.")
    scale_v_pred_loss_like_noise_pred: bool = off(False, "Weigh timesteps of v-prediction as epsilon's are.")
    v_pred_like_loss: Rate = off(0.0, "Add so much of the loss as v-prediction would weigh it; for epsilon.")
    snr_weights: Literal["exact", "peer"] = off(
        "exact", "With zero_terminal_snr, timesteps are weighed by its own SNR, or by the plain one as in sd-scripts."
    )
    masked_loss: bool | None = Field(
        None, exclude=True, description="sd-scripts' switch for masks: here alpha_mask is it, and this must agree."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="Precision of the forward pass.")
    save_precision: Annotated[Literal["fp32", "fp16", "bf16"], BeforeValidator(values.save_precision)] = Field(
        "fp16", description='Precision of the LoRA files; "float" is fp32.'
    )
    save_every_n_steps: Count | None = Field(None, description="Save a snapshot every so many steps.")
    save_every_n_epochs: Count | None = off(
        None, "Save a snapshot at the end of every so many epochs, but for the last one."
    )
    save_last_n_steps: Count | None = off(
        None, "Of save_every_n_steps those that are at most so many steps before the last one."
    )
    save_last_n_epochs: Count | None = off(None, "Of save_every_n_epochs the last so many.")
    keep: Annotated[str, AfterValidator(values.keep_policy)] | None = off(
        None, 'Which of these snapshots stay: "last 3" (saves), "every 20" (steps), or "last 3, every 20" for both.'
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        42, description="All that is random follows from it. sd-scripts draws one where none is set; here it is 42."
    )
    max_grad_norm: Rate = Field(1.0, description="Longer gradients are scaled down to this norm; 0 leaves them.")
    prior_loss_weight: Rate = off(1.0, "How much the loss of regularisation images weighs.")
    weighted_captions: bool = off(
        False, "Read (this:1.3), (this) and [this] in captions as weights of words, as A1111 does in prompts."
    )
    gradient_checkpointing: bool = Field(False, description="Saves memory for time; the result is the same.")

    @model_validator(mode="after")
    def _complete(self) -> RecipeTable:
        if found := [*objective.misfits(self), *length.misfits(self)]:
            raise Misfits(*found)
        objective.settle(self)
        length.settle(self)
        if self.lr_scheduler == "constant" and self.lr_scheduler_args.model_fields_set:
            raise Misfit("lr_scheduler_args", 'lr_scheduler "constant" takes no arguments')
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise Misfit("lr_warmup_steps", 'lr_scheduler "constant" has no warm-up: set 0')
        if self.lr_warmup_steps < 1 and self.max_train_steps:
            self.lr_warmup_steps = int(self.lr_warmup_steps * self.max_train_steps)
        self.unet_lr = self.learning_rate if self.unet_lr is None else self.unet_lr
        self.text_encoder_lr = self.learning_rate if self.text_encoder_lr is None else self.text_encoder_lr
        settle(self)
        if self.unet_lr == self.text_encoder_lr == 0:
            raise Misfit("learning_rate", "unet_lr and text_encoder_lr are both 0: nothing would be trained")
        return self
