"""The keys and values of sd-scripts, LyCORIS and resize_lora that lorabuild knows of but does not have yet."""

from __future__ import annotations

# table of the schema -> keys
KEYS = {
    "SubsetTable": "cache_info metadata_file",
    "RecipeTable": ("base_weights full_bf16 full_fp16 xformers"),
    "StoreTable": "link",
}

# table.key -> values, compared without regard to case
VALUES = {
    "RecipeTable.network_module": "networks.lora networks.dylora networks.oft",
    "NetworkArgs.algo": "tlora",
}


# table.key -> why it will never be one
REFUSED = dict.fromkeys(
    ("DatasetTable.face_crop_aug_range", "SubsetTable.face_crop_aug_range"),
    "not possible: latents are made once an image and kept; crop the images beforehand",
)
REFUSED |= {
    f"RecipeTable.{key}": why
    for key, why in {
        "sample_prompts": "it is called prompts here, in [samples]",
        "output_name": "files have the name of the project's folder: leave it out",
        "output_dir": "files go to build/<name>/: leave it out",
        "logging_dir": "events go to build/<name>/logs: leave it out",
        "save_model_as": "files are .safetensors: leave it out",
        "cache_latents": "latents are always made once and kept: leave it out",
        "cache_latents_to_disk": "latents are always made once and kept: leave it out",
        "cache_text_encoder_outputs": "with text_encoder_lr = 0 each caption is always encoded once: leave it out",
        "cache_text_encoder_outputs_to_disk": "with text_encoder_lr = 0 each caption is always encoded once: leave it out",
        "fp8_base": "the base is kept in mixed_precision; docs/memory.md has what fits a small card",
        "fp8_base_unet": "the base is kept in mixed_precision; docs/memory.md has what fits a small card",
        "lowram": "tensors are never gathered in the host's memory: leave it out",
        "max_data_loader_n_workers": "there are no loaders: leave it out",
        "persistent_data_loader_workers": "there are no loaders: leave it out",
        "sdpa": "it is what is used always: leave it out",
        "no_half_vae": "the VAE always computes in fp32: leave it out",
        "pretrained_model_name_or_path": "it is the base, in [project]; its file stands in lorabuild.toml",
        "clip_skip": "it is a setting of the base: [bases.<name>] clip_skip in lorabuild.toml",
        "vae": "it is a setting of the base: [bases.<name>] vae in lorabuild.toml",
    }.items()
}
REFUSED |= {
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


def later_key(table: str, key: str) -> bool:
    """Is it a key that this table of the schema will have?"""
    return key in KEYS.get(table, "").split()


def later_value(table: str, key: str, value: object) -> bool:
    """Is it a value that this key will have?"""
    return str(value).casefold() in VALUES.get(f"{table}.{key}", "").casefold().split()
