"""What each argument of sd-scripts' sdxl_train_network.py is here: a key of the same name, another key, or why none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorabuild.manifest.later import REFUSED

# table -> kind of value -> arguments that are keys of the same name there, in the order in which they are written
SAME = {
    "dataset": (
        ("resolution", "resolution"),
        ("flag", "enable_bucket"),
        ("int", "min_bucket_reso max_bucket_reso bucket_reso_steps"),
        ("flag", "bucket_no_upscale flip_aug color_aug random_crop"),
        ("text", "resize_interpolation caption_extension caption_separator"),
        ("flag", "shuffle_caption"),
        ("int", "keep_tokens"),
        ("text", "keep_tokens_separator secondary_separator caption_prefix caption_suffix"),
        ("int", "max_token_length"),
        ("float", "caption_dropout_rate caption_tag_dropout_rate"),
        ("int", "caption_dropout_every_n_epochs"),
        ("flag", "enable_wildcard"),
        ("int", "token_warmup_min"),
        ("share", "token_warmup_step"),
        ("flag", "alpha_mask"),
        ("text", "train_data_dir reg_data_dir"),
    ),
    "recipe": (
        ("text", "network_module"),
        ("int", "network_dim"),
        ("float", "network_alpha network_dropout"),
        ("pairs", "network_args"),
        ("flag", "network_train_unet_only network_train_text_encoder_only"),
        ("text", "network_weights"),
        ("flag", "dim_from_weights"),
        ("float", "scale_weight_norms"),
        ("text", "optimizer_type"),
        ("pairs", "optimizer_args"),
        ("float", "learning_rate unet_lr"),
        ("floats", "text_encoder_lr"),
        ("text", "lr_scheduler lr_scheduler_type"),
        ("pairs", "lr_scheduler_args"),
        ("share", "lr_warmup_steps lr_decay_steps"),
        ("int", "lr_scheduler_num_cycles"),
        ("float", "lr_scheduler_power"),
        ("int", "lr_scheduler_timescale"),
        ("float", "lr_scheduler_min_lr_ratio max_grad_norm"),
        ("int", "max_train_steps max_train_epochs train_batch_size gradient_accumulation_steps"),
        ("flag", "gradient_checkpointing"),
        ("int", "multires_noise_iterations"),
        ("float", "multires_noise_discount noise_offset"),
        ("flag", "noise_offset_random_strength"),
        ("float", "adaptive_noise_scale ip_noise_gamma"),
        ("flag", "ip_noise_gamma_random_strength"),
        ("int", "min_timestep max_timestep"),
        ("flag", "zero_terminal_snr"),
        ("text", "loss_type huber_schedule"),
        ("float", "huber_c huber_scale min_snr_gamma"),
        ("flag", "debiased_estimation_loss scale_v_pred_loss_like_noise_pred"),
        ("float", "v_pred_like_loss"),
        ("flag", "masked_loss"),
        ("float", "prior_loss_weight"),
        ("flag", "weighted_captions"),
        ("text", "mixed_precision save_precision"),
        ("int", "save_every_n_steps save_every_n_epochs save_last_n_steps save_last_n_epochs seed"),
        ("float", "validation_split"),
        ("int", "validation_seed max_validation_steps validate_every_n_steps"),
        ("text", "log_with"),
    ),
    "samples": (
        ("text", "sample_sampler"),
        ("int", "sample_every_n_steps sample_every_n_epochs"),
        ("flag", "sample_at_first"),
    ),
}

# argument -> (kind, table, key) of what has another name here
RENAMED = {
    "sample_prompts": ("text", "samples", "prompts"),
    "caption_extention": ("text", "dataset", "caption_extension"),
    "metadata_title": ("text", "project", "title"),
    "metadata_author": ("text", "project", "author"),
    "metadata_description": ("text", "project", "description"),
    "metadata_license": ("text", "project", "license"),
    "metadata_tags": ("text", "project", "tags"),
    "metadata_trigger_phrase": ("text", "project", "trigger"),
}

_ALWAYS = "latents are always made once and kept"
_MEMORY = "memory is saved by gradient_checkpointing, the base's precision by mixed_precision"
_LOG = "events go to build/<name>/logs, for TensorBoard"
_STATE = "a run that was stopped goes on from its last saved state by itself"
_HUB = "`lorabuild export` and a remote store ([store] remote) are the way out; nothing is uploaded while it trains"
_SPEED = "SDPA is what is used always"
_SEVERAL = "recipe.processes says how many processes train together"
_HEADER = "the header says title, author, description, license, tags and trigger; not this"
_NOT_YET = "lorabuild has none"


def _refused(key: str, table: str = "RecipeTable") -> str:
    return REFUSED[f"{table}.{key}"].removesuffix(": leave it out")


# kind -> argument -> why it is no key here. What the manifest refuses in so many words is told in the same ones.
ELSEWHERE: dict[str, dict[str, str]] = {
    "flag": {
        "v2": "SDXL is no Stable Diffusion 2: sd-scripts ignores it here, too",
        "v_parameterization": 'the base says it: prediction_type = "v_prediction" in lorabuild.toml',
        "cache_latents": _refused("cache_latents"),
        "cache_latents_to_disk": _refused("cache_latents_to_disk"),
        "skip_cache_check": f"{_ALWAYS}, by content: there is nothing to check",
        "cache_info": f"sizes of images are remembered always; {_ALWAYS}",
        "cache_text_encoder_outputs": _refused("cache_text_encoder_outputs"),
        "cache_text_encoder_outputs_to_disk": _refused("cache_text_encoder_outputs"),
        "no_half_vae": _refused("no_half_vae"),
        "persistent_data_loader_workers": _refused("persistent_data_loader_workers"),
        "xformers": f"{_SPEED}: equal within rounding",
        "sdpa": _refused("sdpa"),
        "mem_eff_attn": f"{_SPEED}: equal within rounding",
        "torch_compile": f"{_NOT_YET}: it is speed, not another result",
        "lowram": "models go straight to the device always",
        "highvram": "the device's memory is kept between jobs always",
        "full_fp16": f"{_NOT_YET}: the adapter trains in fp32, which is exacter",
        "full_bf16": f"{_NOT_YET}: the adapter trains in fp32, which is exacter",
        "fp8_base": f"{_NOT_YET}: {_MEMORY}",
        "fp8_base_unet": f"{_NOT_YET}: {_MEMORY}",
        "cpu_offload_checkpointing": f"{_NOT_YET}: {_MEMORY}",
        "fused_backward_pass": f"{_NOT_YET}; sd-scripts has it for full fine-tuning",
        "use_8bit_adam": "it is optimizer_type AdamW8bit",
        "use_lion_optimizer": "it is optimizer_type Lion",
        "no_metadata": "the header says how a file was made always; it holds no paths and no dates",
        "save_state": _STATE,
        "save_state_on_train_end": "recipe.init continues a finished LoRA",
        "save_state_to_huggingface": _HUB,
        "resume_from_huggingface": _HUB,
        "async_upload": _HUB,
        "skip_until_initial_step": _STATE,
        "debug_dataset": "`lorabuild check --images` shows what becomes of each image",
        "output_config": "the manifest is the config",
        "log_config": "the header of each file says its settings",
        "console_log_simple": "progress is plain lines wherever the output is no terminal",
        "ddp_gradient_as_bucket_view": _SEVERAL,
        "ddp_static_graph": _SEVERAL,
        "deepspeed": f"{_NOT_YET}: {_SEVERAL}",
        "zero3_init_flag": f"DeepSpeed's: {_NOT_YET}",
        "zero3_save_16bit_model": f"DeepSpeed's: {_NOT_YET}",
        "fp16_master_weights_and_gradients": f"DeepSpeed's: {_NOT_YET}",
        "disable_mmap_load_safetensors": "how a base is read makes no difference to a result",
    },
    "int": {
        "dataset_repeats": "a folder's own number goes before it in sd-scripts, so that it does nothing; num_repeats does",
        "clip_skip": "sd-scripts ignores it for SDXL: both text encoders give their last layer but one",
        "vae_batch_size": f"{_ALWAYS}, an image at a time",
        "max_data_loader_n_workers": _refused("max_data_loader_n_workers"),
        "save_n_epoch_ratio": "sd-scripts' LoRA training does not read it; save_every_n_epochs does",
        "save_last_n_epochs_state": _STATE,
        "save_last_n_steps_state": _STATE,
        "initial_epoch": _STATE,
        "initial_step": _STATE,
        "validate_every_n_epochs": "validate_every_n_steps counts updates; without it each tenth of the training is looked at",
        "ddp_timeout": _SEVERAL,
        "zero_stage": f"DeepSpeed's: {_NOT_YET}",
    },
    "float": {},
    "text": {
        "pretrained_model_name_or_path": "it is project.base; its file stands in lorabuild.toml",
        "vae": _refused("vae"),
        "tokenizer_cache_dir": "tokenizers come with lorabuild (docs/tokenizers.md)",
        "output_dir": _refused("output_dir"),
        "output_name": _refused("output_name"),
        "save_model_as": _refused("save_model_as"),
        "logging_dir": _refused("logging_dir"),
        "log_prefix": _LOG,
        "log_tracker_name": _LOG,
        "log_tracker_config": _LOG,
        "wandb_run_name": _LOG,
        "wandb_api_key": "a key does not belong into a manifest: left out",
        "console_log_level": "each job has its log in .lorabuild/logs",
        "console_log_file": "each job has its log in .lorabuild/logs",
        "huggingface_repo_id": _HUB,
        "huggingface_repo_type": _HUB,
        "huggingface_path_in_repo": _HUB,
        "huggingface_token": "a token does not belong into a manifest: left out",
        "huggingface_repo_visibility": _HUB,
        "resume": _STATE,
        "config_file": "it is read, too, where it is there",
        "dataset_config": "it is read, too, where it is there",
        "dataset_class": "sd-scripts' own way to bring a class of data sets: there is none here",
        "in_json": f"captions in one JSON file: {_NOT_YET}; captions lie beside the images here",
        "conditioning_data_dir": "masks are the images' own transparency here: alpha_mask = true",
        "face_crop_aug_range": _refused("face_crop_aug_range", "DatasetTable"),
        "training_comment": "project.description is what the header says of it",
        "dynamo_backend": f"torch_compile's: {_NOT_YET}",
        "metadata_usage_hint": _HEADER,
        "metadata_thumbnail": _HEADER,
        "metadata_merged_from": _HEADER,
        "metadata_preprocessor": _HEADER,
        "metadata_is_negative_embedding": _HEADER,
        "offload_optimizer_device": f"DeepSpeed's: {_NOT_YET}",
        "offload_optimizer_nvme_path": f"DeepSpeed's: {_NOT_YET}",
        "offload_param_device": f"DeepSpeed's: {_NOT_YET}",
        "offload_param_nvme_path": f"DeepSpeed's: {_NOT_YET}",
    },
    "texts": {
        "base_weights": "LoRAs that are merged into the base before the training: merge them into it beforehand",
    },
    "floats": {
        "base_weights_multiplier": "LoRAs that are merged into the base before the training: merge them into it beforehand",
    },
}
SECRET = ("wandb_api_key", "huggingface_token")
# What changes the result, and yet is not taken over: worth a line on the screen, too.
MATTERS = (
    "base_weights", "in_json", "conditioning_data_dir", "face_crop_aug_range", "full_fp16", "full_bf16", "fp8_base",
    "fp8_base_unet", "v2", "initial_epoch", "initial_step", "resume",
)  # fmt: skip

# Written into configs by kohya_ss's interface, read by no script: told without a warning.
UNREAD = dict.fromkeys(("epoch", "noise_offset_type"), "kohya_ss's interface writes it; sd-scripts does not read it")

# What only a file of settings has. Keys of [[datasets]] and [[datasets.subsets]] that are no arguments: key -> why
OF_DATASETS = {
    "cache_info": ELSEWHERE["flag"]["cache_info"],
    "metadata_file": ELSEWHERE["text"]["in_json"],
    "conditioning_data_dir": ELSEWHERE["text"]["conditioning_data_dir"],
    "face_crop_aug_range": ELSEWHERE["text"]["face_crop_aug_range"],
    "network_multiplier": "sd-scripts' LoRA training sets it to 1",
    "custom_attributes": "sd-scripts' LoRA training of SDXL does not read them",
    "debug_dataset": ELSEWHERE["flag"]["debug_dataset"],
}


@dataclass(frozen=True)
class Argument:
    """`kind`: flag, int, float, share, text, texts, floats, pairs or resolution. With a `key` it is one; else `why` not."""

    kind: str
    table: str = ""
    key: str = ""
    why: str = ""


def _table() -> dict[str, Argument]:
    found = {
        name: Argument(kind, table, name)
        for table, groups in SAME.items()
        for kind, names in groups
        for name in names.split()
    }
    found |= {name: Argument(kind, table, key) for name, (kind, table, key) in RENAMED.items()}
    return found | {name: Argument(kind, why=why) for kind, names in ELSEWHERE.items() for name, why in names.items()}


ARGUMENTS: Mapping[str, Argument] = _table()
ORDER = [
    *("extends", "base", "kind", "trigger", "title"),
    *(name for groups in SAME.values() for _, names in groups for name in names.split()),
]

# What sd-scripts does where nothing is said, if that is not what lorabuild does; or if one may not guess it.
DEFAULTS: dict[str, dict[str, Any]] = {
    "dataset": {
        "enable_bucket": False,
        "max_bucket_reso": 1024,
        "bucket_reso_steps": 64,
        "caption_extension": ".caption",
    },
    "recipe": {
        "network_dim": 4,  # LyCORIS's and networks.lora's own, where network_dim is None
        "network_alpha": 1.0,
        "optimizer_type": "AdamW",
        "learning_rate": 2e-6,
        "lr_scheduler": "constant",
        "max_train_steps": 1600,
        "train_batch_size": 1,
        "mixed_precision": "no",
        "save_precision": "fp32",  # that of the adapter in training
    },
}
UNNEEDED_BY = {"learning_rate": ("unet_lr", "text_encoder_lr"), "max_train_steps": ("max_train_epochs",)}
