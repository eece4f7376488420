"""[recipe]: how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lorabuild.manifest import values
from lorabuild.manifest.tables import length, objective
from lorabuild.manifest.tables.network import WITHOUT_TEXT, NetworkArgs, settle
from lorabuild.manifest.tables.rates import (
    Above,
    Arguments,
    DottedClass,
    OptimizerName,
    PhaseTable,
    ScheduleName,
    Share,
    TextRates,
    complete_phases,
    complete_rates,
)
from lorabuild.manifest.tables.table import Count, Part, Rate, Table, Text, Whole, off
from lorabuild.manifest.values import Misfits


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
        None, description="Learning rate of both text encoders, or a list of two; default learning_rate, 0 freezes."
    )
    network_train_unet_only: bool = off(False, "text_encoder_lr is 0, whatever is set.")
    network_train_text_encoder_only: bool = off(False, "unet_lr is 0, whatever is set.")
    network_dropout: Part = off(0.0, "sd-scripts' name for network_args.dropout.")
    scale_weight_norms: Annotated[float, Field(gt=0)] | None = off(
        None, "After each update, layers whose change has a larger norm are scaled down to this one; 1 is usual."
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
    max_train_steps: Count | None = Field(1600, description="Updates of the weights; with phases, their sum.")
    max_train_epochs: Count | None = off(
        None, "In place of max_train_steps: passes over the data, each sample exactly once in each."
    )
    phases: list[PhaseTable] = off([], "[[recipe.phases]]: trainings of the rates, one after another, over one run.")
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
    validation: bool = off(
        False, "Log the held-out loss at each tenth of the training, too: of noise never trained on."
    )
    validation_split: Part = off(
        0.0,
        "The part of the images that is held back, at least one: the held-out loss, logged at each tenth, is theirs.",
    )
    validation_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = off(
        None, "What is held back, and the noise of the held-out loss, follow from it; default seed."
    )
    max_validation_steps: Count | None = off(
        None, "Forward passes a held-out loss; default all of what is held back, or 3 of what is trained on."
    )
    validate_every_n_steps: Count | None = off(
        None,
        "The held-out loss every so many steps, for TensorBoard and the progress line; train.jsonl stays as it is.",
    )
    log_with: Literal["tensorboard"] | None = off(
        None, "Events go to build/<name>/logs wherever TensorBoard is installed; with this, a warning if it is not."
    )
    processes: Count = off(1, "Processes that train together, on a GPU each: as many as [slots] gpu allows.")
    torch_compile: bool | None = off(
        None, "Compile the U-Net's blocks on a GPU; default where the training is long enough. A CPU never does."
    )
    gradient_checkpointing: bool = Field(False, description="Saves memory for time; the result is the same.")

    @model_validator(mode="after")
    def _complete(self) -> RecipeTable:
        if found := [*objective.misfits(self), *length.misfits(self)]:
            raise Misfits(*found)
        objective.settle(self)
        length.settle(self)
        without_text = self.network_train_unet_only or self.network_args.preset in WITHOUT_TEXT
        without_unet = self.network_train_text_encoder_only
        complete_rates(self)
        if self.validation_split:
            self.validation = False  # it says so already
        if self.validation_seed == self.seed:
            self.validation_seed = None  # the default, spelled out
        settle(self)
        complete_phases(self, without_text, without_unet)
        return self
