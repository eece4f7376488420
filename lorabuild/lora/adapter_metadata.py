"""Read the scales of a LoRA that diffusers has saved: they stand in its metadata, for there are no alphas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from lorabuild.errors import JobError
from lorabuild.header import TensorInfo

KEY = "lora_adapter_metadata"  # of a file that is resized or merged it is no longer true
COMPONENTS = ("text_encoder_2", "text_encoder", "unet")


def adapter_scale(metadata: Mapping[str, str]) -> Callable[[str, Mapping[str, TensorInfo]], float] | None:
    """(module, its tensors) -> lora_alpha / r, by PEFT's LoraConfig in the metadata; None if there is none.

    alpha_pattern and use_rslora (alpha / √r) count; r is that of the tensors. Raises JobError for what cannot be read.
    """
    if KEY not in metadata:
        return None
    try:
        config = json.loads(metadata[KEY])
        components = {one: _of_component(config, one) for one in COMPONENTS}
    except (ValueError, TypeError, AttributeError):
        raise JobError(f"{KEY} in the metadata is not a LoraConfig as diffusers writes it") from None

    def scale(module: str, infos: Mapping[str, TensorInfo]) -> float:
        component = next((one for one in COMPONENTS if module.startswith(f"{one}.")), None)
        if component is None or "down" not in infos or not infos["down"].shape:
            return 1.0
        return _scale(components[component], module, infos["down"].shape[0])

    return scale


def _of_component(config: Mapping[str, Any], component: str) -> dict[str, Any]:
    found = {
        key.removeprefix(f"{component}."): value for key, value in config.items() if key.startswith(f"{component}.")
    }
    alpha, patterns = found.get("lora_alpha"), found.get("alpha_pattern") or {}
    return {
        "alpha": None if alpha is None else float(alpha),
        "patterns": {str(pattern): float(value) for pattern, value in patterns.items()},
        "rslora": bool(found.get("use_rslora")),
    }


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """A pattern is the end of a module's name, as PEFT matches it."""
    own = (value for pattern, value in config["patterns"].items() if re.search(rf"(^|\.){re.escape(pattern)}$", module))
    alpha = next(own, config["alpha"])
    if alpha is None or not rank:
        return 1.0
    return alpha / (rank**0.5 if config["rslora"] else rank)
