"""The keys and values of sd-scripts, LyCORIS and resize_lora that lorabuild knows of but does not have yet."""

from __future__ import annotations

# table of the schema -> keys
KEYS = {
    "Manifest": "samples",
    "DatasetTable": (
        "alpha_mask caption_dropout_every_n_epochs caption_dropout_rate caption_prefix caption_suffix "
        "caption_tag_dropout_rate color_aug enable_wildcard face_crop_aug_range keep_tokens_separator random_crop "
        "resize_interpolation secondary_separator token_warmup_min token_warmup_step"
    ),
    "SubsetTable": (
        "cache_info caption_prefix caption_suffix class_tokens flip_aug is_reg keep_tokens metadata_file random_crop "
        "shuffle_caption"
    ),
    "RecipeTable": (
        "adaptive_noise_scale base_weights clip_skip debiased_estimation_loss dim_from_weights full_bf16 full_fp16 "
        "huber_c huber_schedule init ip_noise_gamma loss_type lr_scheduler_num_cycles lr_scheduler_power "
        "lr_scheduler_type masked_loss max_timestep max_train_epochs min_snr_gamma min_timestep "
        "network_weights noise_offset "
        "noise_offset_random_strength phases prior_loss_weight save_every_n_epochs save_last_n_epochs "
        "save_last_n_steps sdpa v_parameterization weighted_captions xformers zero_terminal_snr"
    ),
    "OptimizerArgs": "amsgrad decouple d_coef growth_rate momentum relative_step safeguard_warmup scale_parameter",
    "SchedulerArgs": "gamma lr_decay_steps min_lr min_lr_rate power",
    "BaseTable": "clip_skip digest vae",
    "StoreTable": "link",
}

# table.key -> values, compared without regard to case
VALUES = {
    "DatasetTable.max_token_length": "150 225",
    "RecipeTable.network_module": "networks.lora networks.dylora networks.oft",
    "RecipeTable.optimizer_type": (
        "AdamW8bit PagedAdamW PagedAdamW8bit PagedAdamW32bit Lion Lion8bit PagedLion8bit SGDNesterov SGDNesterov8bit "
        "DAdaptation DAdaptAdamPreprint DAdaptAdaGrad DAdaptAdam DAdaptAdan DAdaptAdanIP DAdaptLion DAdaptSGD Prodigy "
        "Adafactor RAdamScheduleFree AdamWScheduleFree SGDScheduleFree ClybW FCompass LodeW"
    ),
    "RecipeTable.lr_scheduler": (
        "linear cosine_with_restarts polynomial constant_with_warmup inverse_sqrt cosine_with_min_lr "
        "warmup_stable_decay piecewise_constant adafactor"
    ),
    "NetworkArgs.algo": "tlora",
    "BaseTable.prediction_type": "v_prediction",
    "BuildTable.default": "samples report",
}


def later_key(table: str, key: str) -> bool:
    """Is it a key that this table of the schema will have?"""
    return key in KEYS.get(table, "").split()


def later_value(table: str, key: str, value: object) -> bool:
    """Is it a value that this key will have?"""
    return str(value).casefold() in VALUES.get(f"{table}.{key}", "").casefold().split()


# table.key -> why it is not there and will not be
REFUSED = {
    "NetworkArgs.bypass_mode": (
        "no such choice here: a change is never added to the base's weights before it is used, so that none is rounded away"
    ),
    "NetworkArgs.use_cp": 'it is called use_tucker now (LyCORIS took "cp" for another decomposition)',
    "NetworkArgs.use_conv_cp": "it is called use_tucker now",
    "NetworkArgs.disable_conv_cp": "it is called use_tucker now, and is false unless it is set",
    "NetworkArgs.use_reentrant": "nothing reads it, in LyCORIS neither: leave it out",
    "NetworkArgs.train_t5xxl": "SDXL has no T5 text encoder",
    "NetworkArgs.train_llm_adapter": "SDXL has no language model",
    "NetworkArgs.train_on_input": "nothing reads it in LyCORIS's network_args: ia3 scales outputs",
}


def refused(table: str, key: str) -> str | None:
    """Why a key that others know is none here."""
    return REFUSED.get(f"{table}.{key}")
