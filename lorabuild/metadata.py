"""Make the header of a published LoRA: kohya's ss_*, ModelSpec and our own record of how it was made."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.data.captions import tag_counts
from lorabuild.hashing import sha256_from
from lorabuild.lora.amend import ARCHITECTURE, IMPLEMENTATION, amended, remade
from lorabuild.training.order import batches_per_epoch
from lorabuild.training.updates import counted
from lorabuild.training.validation import split
from lorabuild.vectors import block_vector

if TYPE_CHECKING:
    from lorabuild.state import State

VERSION = 2  # raise when equal inputs should give another header: every artifact is published again, nothing is built


def metadata(
    about: Mapping[str, Any],
    sha256: str,
    dataset: Mapping | None,
    facts: Mapping | None,
    source: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The `__metadata__` of an artifact: a pure function of what made it. No clock times, ids or paths; all are strings.

    `about` is publish's description, `sha256` the hex digest of the bytes after the header, `dataset` the parsed
    dataset.json, `facts` train's facts.json (None for a snapshot), `source` the metadata of the LoRA that a project
    starts from: it is kept, but for what is said anew. Keys: kohya-ss sd-scripts, ModelSpec 1.0.1.
    """
    tables = _tables(about["made_by"])
    unseen = 0
    if dataset and "train" in about["made_by"]:
        images, held_back = split(dataset["images"], tables.get("recipe", {}))
        dataset, unseen = {**dataset, "images": images}, len(held_back)
    found = {
        **_identity(about),
        **_modelspec(about, tables),
        **_training(tables.get("recipe", {}) if "train" in about["made_by"] else {}, about, dataset),
        **_dataset(about["project_name"], tables.get("dataset", {}), dataset),
        "ss_num_validation_images": unseen or None,
        **_network(tables, "init" in about["made_by"].get("train", {}).get("inputs", {})),
        **_ours(about, tables, facts),
    }
    said = {key: value for key, value in found.items() if value is not None}
    if source is not None:
        return amended(
            remade(source) if "resize" in tables else source, about["name"], _beside(source, said, about), sha256
        )
    return amended({}, about["name"], said, sha256)


# What we would say of every LoRA that is made here, and what a source says of itself, it knows better.
KNOWN_BY_SOURCE = (
    "ss_base_model_version", "ss_v2", "ss_sd_model_name", "modelspec.architecture", "modelspec.implementation",
    "modelspec.prediction_type", "modelspec.sai_model_spec", "lorabuild.recipe",
)  # fmt: skip
MERGED = ("lorabuild.inputs", "lorabuild.stages")


def _beside(source: Mapping[str, str], said: Mapping[str, Any], about: Mapping) -> dict[str, Any]:
    """What is said of a file that was made from a user's LoRA, over what that says itself."""
    found = {key: value for key, value in said.items() if key not in source or key not in KNOWN_BY_SOURCE}
    if not about["project"].get("title") and "modelspec.title" in source:
        found["modelspec.title"] = source["modelspec.title"]
    if "resize" in about["made_by"]:
        found["ss_network_alpha"] = "Dynamic"  # one for the file, as sd-scripts says of it
    for key in MERGED:
        with contextlib.suppress(KeyError, ValueError, TypeError):
            found[key] = {**json.loads(source[key]), **said[key]}
    return found


def body_sha256(blob: Path, digest: str, state: State) -> str:
    """sha256, in hex, of the tensors' bytes of a body; computed once a body."""
    if known := state.get(f"sha256:{digest}"):
        return known
    with open(blob, "rb") as file:
        found = sha256_from(blob, 8 + int.from_bytes(file.read(8), "little"))
    state.put(f"sha256:{digest}", found)
    return found


def _tables(made_by: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifest's tables as the ancestors of an artifact resolved them; train's recipe counts, not resize's part."""
    tables: dict[str, dict[str, Any]] = {}
    for stage in ("chop", "resize", "spectrum", "latents", "dataset", "train"):
        for table, values in made_by.get(stage, {}).get("params", {}).items():
            tables.setdefault(table, {}).update(values if isinstance(values, Mapping) else {"value": values})
    return tables


def _identity(about: Mapping) -> dict[str, Any]:
    return {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": False,
        "ss_sd_model_name": about["project"].get("base"),
    }


def _modelspec(about: Mapping, tables: Mapping) -> dict[str, Any]:
    project = about["project"]
    tags = project.get("tags")
    resolution = tables.get("dataset", {}).get("resolution")
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": project.get("title") or about["name"],
        "modelspec.author": project.get("author"),
        "modelspec.description": project.get("description"),
        "modelspec.license": project.get("license"),
        "modelspec.tags": ", ".join(tags) if isinstance(tags, list) else tags,
        "modelspec.trigger_phrase": project.get("trigger"),
        "modelspec.prediction_type": "v" if _prediction_type(about) == "v_prediction" else "epsilon",
        "modelspec.resolution": "{}x{}".format(*resolution) if resolution else None,
    }


def _base_settings(about: Mapping) -> Mapping[str, Any]:
    """What lorabuild.toml said of the base when it was trained on."""
    return about["made_by"].get("train", {}).get("params", {}).get("base", {})


def _prediction_type(about: Mapping) -> str:
    return _base_settings(about).get("prediction_type", "epsilon")


def _training(recipe: Mapping, about: Mapping, dataset: Mapping | None) -> dict[str, Any]:
    """Settings under the names that UIs show; a setting that a recipe lacks is left out."""
    if not recipe:
        return {}
    step = about["trained"].partition("/")[2]
    batches = batches_per_epoch(dataset["images"], recipe["train_batch_size"]) if dataset else 0
    recipe = counted(recipe, batches) if recipe.get("max_train_epochs") and batches else recipe
    steps = int(step) if step else recipe.get("max_train_steps")
    micro_batches = (steps or 0) * recipe.get("gradient_accumulation_steps", 1)
    optimizer_args = ", ".join(f"{key}={value}" for key, value in sorted((recipe.get("optimizer_args") or {}).items()))
    shown = {
        "ss_steps": steps,
        "ss_epoch": -(-micro_batches // batches) if batches else None,
        "ss_num_batches_per_epoch": batches or None,
        "ss_optimizer": f"{recipe.get('optimizer_type')}({optimizer_args})",
        "ss_batch_size_per_device": recipe.get("train_batch_size"),
        "ss_total_batch_size": recipe.get("train_batch_size"),
        "ss_clip_skip": _base_settings(about).get("clip_skip"),
    }
    same_name = (
        "seed unet_lr text_encoder_lr lr_scheduler lr_scheduler_args lr_warmup_steps max_train_steps "
        "gradient_accumulation_steps mixed_precision multires_noise_iterations multires_noise_discount max_grad_norm "
        "prior_loss_weight validation_split validation_seed max_validation_steps"
    )
    return shown | {f"ss_{key}": recipe.get(key) for key in same_name.split()} | _objective(recipe)


def _objective(recipe: Mapping) -> dict[str, Any]:
    """Noise and loss as sd-scripts names them; what is at its default is left out. The rest is in lorabuild.recipe."""
    same_name = (
        "noise_offset noise_offset_random_strength adaptive_noise_scale ip_noise_gamma ip_noise_gamma_random_strength "
        "zero_terminal_snr min_snr_gamma loss_type prior_loss_weight"
    )
    shown = {key: recipe.get(key) for key in same_name.split()}
    shown["debiased_estimation"] = recipe.get("debiased_estimation_loss")
    if recipe.get("loss_type") in ("huber", "smooth_l1"):
        defaults = {"huber_schedule": "snr", "huber_c": 0.1, "huber_scale": 1.0}
        shown |= {key: recipe.get(key, default) for key, default in defaults.items()}
    return {f"ss_{key}": value for key, value in shown.items()}


def _dataset(name: str, settings: Mapping, dataset: Mapping | None) -> dict[str, Any]:
    if dataset is None:
        return {}
    images = dataset["images"]
    tags = tag_counts(image["caption"] for image in images)
    reg = [image for image in images if image.get("is_reg")]
    buckets = Counter(tuple(image["bucket"]) for image in images for _ in range(image["repeats"]))
    same_name = (
        "enable_bucket min_bucket_reso max_bucket_reso bucket_no_upscale flip_aug shuffle_caption keep_tokens "
        "max_token_length caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate random_crop "
        "color_aug"
    )
    return {
        "ss_tag_frequency": {name: dict(sorted(tags.items(), key=lambda item: (-item[1], item[0])))},
        "ss_dataset_dirs": _folders(name, [image for image in images if not image.get("is_reg")]),
        "ss_bucket_info": {
            "buckets": {
                str(number): {"resolution": list(bucket), "count": count}
                for number, (bucket, count) in enumerate(sorted(buckets.items()))
            },
            "mean_img_ar_error": _mean_aspect_error(images),
        },
        "ss_num_train_images": sum(buckets.values()) - sum(image["repeats"] for image in reg),
        "ss_num_reg_images": sum(image["repeats"] for image in reg),
        "ss_reg_dataset_dirs": _folders(name, reg),
        "ss_resolution": "({}, {})".format(*settings["resolution"]) if "resolution" in settings else None,
    } | {f"ss_{key}": settings.get(key) for key in same_name.split()}


def _folders(name: str, images: list[Mapping]) -> dict[str, Any]:
    """Images by their repeats, as sd-scripts' folders would hold them."""
    by_repeats = Counter(image["repeats"] for image in images)
    return {
        f"{repeats}_{name}": {"n_repeats": repeats, "img_count": count} for repeats, count in sorted(by_repeats.items())
    }


def _mean_aspect_error(images: list[Mapping]) -> float:
    """Mean of |bucket w/h - image w/h|, over images without their repeats."""
    errors = [abs(i["bucket"][0] / i["bucket"][1] - i["size"][0] / i["size"][1]) for i in images]
    return round(sum(errors) / len(errors), 6) if errors else 0.0


def _network(tables: Mapping, continues: bool) -> dict[str, Any]:
    """After a resize ranks differ by layer: "Dynamic", as sd-scripts writes, and no conv_dim; the one alpha stays.

    They may, too, where a LoRA is continued (`init`), whose ranks count.
    """
    recipe = tables.get("recipe", {})
    resized = "resize" in tables
    return {
        "ss_network_module": recipe.get("network_module"),
        "ss_network_dim": "Dynamic" if resized or continues else recipe.get("network_dim"),
        "ss_network_alpha": recipe.get("network_alpha"),
        "ss_network_args": None if resized else recipe.get("network_args"),  # lorabuild.recipe has them
        "ss_network_dropout": recipe.get("network_args", {}).get("dropout"),
        "ss_scale_weight_norms": recipe.get("scale_weight_norms"),
        "block_vector_string": block_vector(tables["chop"]["keep"]) if "chop" in tables else None,
    }


def _ours(about: Mapping, tables: Mapping, facts: Mapping | None) -> dict[str, Any]:
    """What it takes to make the file again: resolved settings, digests of inputs, versions of stages."""
    made_by = about["made_by"]
    return {f"lorabuild.{table}": values for table, values in tables.items()} | {
        "lorabuild.inputs": {stage: made["inputs"] for stage, made in made_by.items()},
        "lorabuild.stages": {stage: made["version"] for stage, made in made_by.items()},
        "lorabuild.loss": {key: facts[key] for key in ("loss_before", "loss_after")} if facts else None,
    }
