"""The keys and values of sd-scripts, LyCORIS and resize_lora that lorabuild knows of but does not have yet."""

from __future__ import annotations

# table of the schema -> keys
KEYS = {
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
        "lr_scheduler_type masked_loss max_timestep max_train_epochs min_snr_gamma min_timestep network_dropout "
        "network_train_text_encoder_only network_train_unet_only network_weights noise_offset "
        "noise_offset_random_strength phases prior_loss_weight save_every_n_epochs save_last_n_epochs "
        "save_last_n_steps scale_weight_norms sdpa v_parameterization weighted_captions xformers zero_terminal_snr"
    ),
    "NetworkArgs": (
        "block_size bypass_mode constraint decompose_both dora_wd dropout factor full_matrix loraplus_lr_ratio "
        "module_dropout rank_dropout rank_dropout_scale rescaled rs_lora train_norm unbalanced_factorization use_cp "
        "use_scalar use_tucker wd_on_output"
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
    "NetworkArgs.algo": "loha lokr dylora glora full diag-oft boft ia3 tlora",
    "NetworkArgs.preset": "full-lin attn-mlp attn-only unet-only unet-transformer-only unet-convblock-only",
    "BaseTable.prediction_type": "v_prediction",
    "BuildTable.default": "report",
}


def later_key(table: str, key: str) -> bool:
    """Is it a key that this table of the schema will have?"""
    return key in KEYS.get(table, "").split()


def later_value(table: str, key: str, value: object) -> bool:
    """Is it a value that this key will have?"""
    return str(value).casefold() in VALUES.get(f"{table}.{key}", "").casefold().split()
