"""Say what a change of a manifest key does: the class of every key, and the keys of a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Class = Literal["result", "saved", "execution", "presentation"]

# result: part of a stage's key · saved: which snapshots exist · execution: how, not what · presentation: shown only
KEYS: dict[str, dict[Class, str]] = {
    # Its recipes' keys count, not their names; a matrix says which variants there are, not what is in them
    "": {"presentation": "extends", "saved": "matrix"},
    "project": {
        "result": "base source",
        "presentation": "kind trigger title author description license tags",
    },
    "dataset": {
        "result": (
            "resolution enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale flip_aug "
            "caption_extension caption_separator shuffle_caption keep_tokens max_token_length caption_prefix "
            "caption_suffix keep_tokens_separator secondary_separator caption_dropout_rate "
            "caption_dropout_every_n_epochs caption_tag_dropout_rate enable_wildcard token_warmup_min "
            "token_warmup_step alpha_mask alpha_policy resize_interpolation crop_conditioning latents random_crop "
            "color_aug train_data_dir reg_data_dir"
        ),
    },
    "dataset.subset": {
        "result": (
            "image_dir num_repeats caption_extension is_reg class_tokens flip_aug shuffle_caption keep_tokens "
            "caption_separator caption_prefix caption_suffix keep_tokens_separator secondary_separator "
            "caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate enable_wildcard "
            "token_warmup_min token_warmup_step alpha_mask resize_interpolation random_crop color_aug"
        ),
    },
    "recipe": {
        "result": (
            "network_module network_dim network_alpha optimizer_type optimizer_args unet_lr text_encoder_lr lr_scheduler "
            "lr_scheduler_args lr_scheduler_type lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale "
            "lr_scheduler_min_lr_ratio lr_decay_steps "
            "lr_warmup_steps max_train_steps train_batch_size gradient_accumulation_steps multires_noise_iterations "
            "multires_noise_discount mixed_precision save_precision seed max_grad_norm prior_loss_weight weighted_captions "
            "max_train_epochs init network_weights dim_from_weights "
            "pyramid_std noise_offset noise_offset_random_strength adaptive_noise_scale ip_noise_gamma "
            "ip_noise_gamma_random_strength min_timestep max_timestep zero_terminal_snr loss_type huber_schedule "
            "huber_c huber_scale min_snr_gamma debiased_estimation_loss scale_v_pred_loss_like_noise_pred "
            "v_pred_like_loss snr_weights network_train_unet_only network_train_text_encoder_only network_dropout "
            "scale_weight_norms validation validation_split validation_seed max_validation_steps"
        ),
        "saved": "save_every_n_steps save_every_n_epochs save_last_n_steps save_last_n_epochs keep",
        "execution": "gradient_checkpointing processes torch_compile",
        # Nothing by themselves: the default of the two rates that training reads, and what base and alpha_mask decide.
        "presentation": "learning_rate v_parameterization masked_loss validate_every_n_steps log_with",
    },
    "recipe.network_args": {
        "result": (
            "algo preset conv_dim conv_alpha block_dims block_alphas conv_block_dims conv_block_alphas dropout "
            "rank_dropout rank_dropout_scale module_dropout use_tucker use_scalar rs_lora dora_wd wd_on_output train_norm "
            "block_size factor decompose_both full_matrix unbalanced_factorization constraint rescaled loraplus_lr_ratio "
            "loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio"
        ),
    },
    "recipe.phases": {
        "result": (
            "max_train_steps unet_lr text_encoder_lr lr_scheduler lr_scheduler_args lr_scheduler_type "
            "lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale lr_scheduler_min_lr_ratio "
            "lr_warmup_steps lr_decay_steps"
        ),
    },
    "resize": {
        "result": (
            "thr size sv_ratio sv_fro sv_cumulative max_rank max_conv_rank fro_ckpt spn_ckpt fro_lora spn_lora "
            "subspace params rescale step allow_empty"
        ),
    },
    "check": {"presentation": "levels"},
    "chop": {"result": "keep weights vector vector_style allow_empty"},
    "samples": {
        "result": "prompts sample_sampler parity blocks_ablation held_out",  # of the stage samples; a training's key has none of them
        "presentation": "sample_every_n_steps sample_every_n_epochs sample_at_first",
    },
}

IN_ORDER = ("recipe.phases",)  # arrays of tables that are settings, one after another

CLASS_OF: dict[str, Class] = {
    f"{table}.{key}".removeprefix("."): cls
    for table, classes in KEYS.items()
    for cls, keys in classes.items()
    for key in keys.split()
}


def result_keys(settings: Mapping[str, Any], table: str) -> dict[str, Any]:
    """The settings of a table that shape a result, sorted by key: what enters a stage's key."""
    return keys_of_class(settings, table, "result")


def keys_of_class(settings: Mapping[str, Any], table: str, cls: Class) -> dict[str, Any]:
    """The settings of a table that are of a class, sorted by key; tables in it are filtered likewise. {} without the table.

    [[dataset.subset]] is left out: a folder enters a key by its content, not by its name. [[recipe.phases]] are in.
    """
    return _chosen(settings.get(table) or {}, table, cls)


def _chosen(values: Mapping[str, Any], path: str, cls: Class) -> dict[str, Any]:
    found = {}
    for key, value in sorted(values.items()):
        where = f"{path}.{key}"
        if CLASS_OF.get(where) == cls:
            found[key] = value
        elif where in KEYS and isinstance(value, Mapping) and (inner := _chosen(value, where, cls)):
            found[key] = inner
        elif where in IN_ORDER and (each := [_chosen(one, where, cls) for one in value]) and any(each):
            found[key] = each
    return found
