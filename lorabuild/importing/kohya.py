"""Read sd-scripts' metadata, ss_*: its arguments as text, its optimizer with arguments in brackets, its data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lorabuild.importing.arguments import ARGUMENTS
from lorabuild.importing.told import Told
from lorabuild.training.optimizers import canonical, parsed

NOTHING = ("None", "null", "")
# ss_ name -> the argument that it is, where that has another name
RENAMED = {
    "debiased_estimation": "debiased_estimation_loss",
    "batch_size_per_device": "train_batch_size",
    "sd_model_name": "pretrained_model_name_or_path",
    "vae_name": "vae",
}
_HASH = "which file it was: [bases.<name>] digest pins a base"
_COUNT = "counted from the images and the settings"
# What is no argument: ss_ name -> why it is no key
FACTS = {
    "session_id": "of that run alone",
    "training_started_at": "when it was trained: lorabuild's files hold no dates",
    "training_finished_at": "when it was trained: lorabuild's files hold no dates",
    "sd_scripts_commit_hash": "which sd-scripts it was",
    "base_model_version": "SDXL",
    "num_train_images": _COUNT,
    "num_validation_images": _COUNT,
    "num_reg_images": _COUNT,
    "num_batches_per_epoch": _COUNT,
    "num_epochs": "counted from max_train_steps",
    "total_batch_size": "train_batch_size, times processes",
    "bucket_info": "which buckets there were: `lorabuild check --images` shows them",
    "tag_frequency": "how often each tag stood in captions",
    "steps": "where this file was saved",
    "epoch": "where this file was saved",
    "sd_model_hash": _HASH,
    "new_sd_model_hash": _HASH,
    "vae_hash": _HASH,
    "new_vae_hash": _HASH,
}
LONG = ("bucket_info", "tag_frequency")
# A module's own class -> the name that it is chosen by
CLASSES = {"Compass": "ClybW", "DAdaptAdamPreprint": "DAdaptation"}
READ_BELOW = ("network_args", "optimizer", "datasets", "dataset_dirs", "reg_dataset_dirs", "lr_scheduler_args")
# Of a subset in ss_datasets: what is counted
COUNTED = ("img_count",)


def tell_metadata(told: Told, said: Mapping[str, str], file: str) -> None:
    """Take over what sd-scripts wrote into a header."""
    args = {key.removeprefix("ss_"): text for key, text in said.items() if key.startswith("ss_")}
    for name, text in args.items():
        known = RENAMED.get(name, name)
        if text in NOTHING or name in READ_BELOW:
            continue
        if known == "network_dim" and not re.fullmatch(r"\d+", text):
            told.note("network_dim", text, "resized: ranks differ by layer; sd-scripts' default stands in its place")
            told.warnings.append(f"{file}: network_dim: ranks differ by layer ({text}): set the one to train with")
        elif known == "network_alpha" and text == "Dynamic":
            told.note("network_alpha", text, "resized: it was made anew")
        elif known == "resolution":
            told.tell("resolution", text.strip("()[] ").replace(" ", ""), file)
        elif known in ARGUMENTS:
            told.tell(known, text, file)
        else:
            told.note(f"ss_{name}", None if name in LONG else text, FACTS.get(name, "lorabuild knows no such setting"))
    _optimizer(told, args.get("optimizer", ""), file)
    for name in ("network_args", "lr_scheduler_args"):
        if isinstance(found := _json(args.get(name, "")), dict) and found:
            told.tell(name, {key: _value(value) for key, value in found.items() if value is not None}, file)
    _datasets(told, args, file)
    for key in said:
        if not key.startswith(("ss_", "modelspec.", "block_vector_string")):
            told.note(key, None, "of the file alone")


def _optimizer(told: Told, text: str, file: str) -> None:
    """`bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))`."""
    match = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", text, re.DOTALL)
    if text in NOTHING or match is None:
        return
    name = match[1].rpartition(".")[2]
    name = CLASSES.get(name, name)
    try:
        canonical(name)
    except ValueError:
        name = match[1]  # a class, by its path
    told.tell("optimizer_type", name, file)
    if match[2]:
        told.tell("optimizer_args", [pair.strip() for pair in _pairs(match[2])], file)


def _pairs(text: str) -> Iterator[str]:
    """Split at commas outside of brackets."""
    depth, start = 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _datasets(told: Told, args: Mapping[str, str], file: str) -> None:
    """ss_datasets, or the folders by ss_dataset_dirs. Names of folders alone are in a header, no paths."""
    datasets = _json(args.get("datasets", ""))
    if isinstance(datasets, list) and all(isinstance(one, dict) for one in datasets):
        told.datasets = [_dataset(one) for one in datasets]
        return
    told.datasets = [{"subsets": []}]
    for name, is_reg in (("dataset_dirs", False), ("reg_dataset_dirs", True)):
        found = _json(args.get(name, ""))
        for folder, facts in found.items() if isinstance(found, dict) else ():
            repeats = facts.get("n_repeats", 1) if isinstance(facts, dict) else 1
            subset = {"image_dir": folder, "num_repeats": repeats} | ({"is_reg": True} if is_reg else {})
            told.datasets[0]["subsets"].append(subset)


SETTINGS = (
    "resolution",
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_no_upscale",
    "resize_interpolation",
)


def _dataset(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A data set as a data set file would have it: what is counted is left out."""
    found = {key: facts[key] for key in SETTINGS if facts.get(key) is not None}
    if facts.get("batch_size_per_device"):
        found["batch_size"] = facts["batch_size_per_device"]
    subsets = [one for one in facts.get("subsets", []) if isinstance(one, dict)]
    found["subsets"] = [
        {key: value for key, value in one.items() if key not in COUNTED and value is not None} for one in subsets
    ]
    return found


def _value(value: Any) -> Any:
    """ "8" -> 8: sd-scripts keeps network_args as they were typed."""
    return parsed([f"x={value}"])["x"] if isinstance(value, str) else value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
