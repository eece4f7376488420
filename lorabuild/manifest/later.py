"""The keys and values of sd-scripts, LyCORIS and resize_lora that lorabuild knows of but does not have yet."""

from __future__ import annotations

# table of the schema -> keys
KEYS = {
    "SubsetTable": "cache_info metadata_file",
    "RecipeTable": (
        "base_weights clip_skip dim_from_weights full_bf16 full_fp16 init lr_scheduler_num_cycles lr_scheduler_power "
        "lr_scheduler_type max_train_epochs network_dropout network_train_text_encoder_only network_train_unet_only "
        "network_weights phases save_every_n_epochs save_last_n_epochs save_last_n_steps "
        "scale_weight_norms sdpa xformers"
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
    "BuildTable.default": "report",
}


# table.key -> why it will never be one
REFUSED = dict.fromkeys(
    ("DatasetTable.face_crop_aug_range", "SubsetTable.face_crop_aug_range"),
    "not possible: latents are made once an image and kept; crop the images beforehand",
)


def later_key(table: str, key: str) -> bool:
    """Is it a key that this table of the schema will have?"""
    return key in KEYS.get(table, "").split()


def later_value(table: str, key: str, value: object) -> bool:
    """Is it a value that this key will have?"""
    return str(value).casefold() in VALUES.get(f"{table}.{key}", "").casefold().split()
