"""Write a small SDXL as a diffusers folder: configs, weights, the built-in tokenizer, SDXL's scheduler."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorabuild.data.vocabulary import END, START
from lorabuild.nn.tokenizer import vocabulary
from lorabuild.writing import header_bytes

Config = dict[str, Any]
TOKENS = 77
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PAD = {"tokenizer": END, "tokenizer_2": "!"}  # SDXL's second tokenizer pads with id 0


def write_base(
    folder: Path, configs: Mapping[str, Config], weights: Callable[[str, Config], Mapping[str, np.ndarray]]
) -> None:
    """Write a base into `folder`, which need not exist. `configs`: component -> config.json.

    `weights(component, config)` gives float32 arrays by the names that SDXL's files have. Equal arguments, equal bytes.
    """
    for component, config in configs.items():
        _write_json(folder / component / "config.json", config)
        _write_weights(folder / component / WEIGHTS[component], weights(component, config))
    for component, pad in PAD.items():
        _write_tokenizer(folder / component, pad)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", MODEL_INDEX)


def file_name(component: str, name: str) -> str:
    """transformers 5 calls a text encoder's layers `encoder…`, SDXL's files `text_model.encoder…`."""
    bare = component in TEXT_ENCODERS and not name.startswith(("text_model.", "text_projection."))
    return f"text_model.{name}" if bare else name


def _write_weights(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    header = header_bytes([(name, "F32", one.shape) for name, one in weights.items()], {"format": "pt"})
    with open(path, "wb") as file:
        file.write(header)
        for name in sorted(weights):
            file.write(weights[name].astype("<f4").tobytes())


def _write_tokenizer(folder: Path, pad: str) -> None:
    tokens, merges = vocabulary()
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    settings = {"model_max_length": TOKENS, "tokenizer_class": "CLIPTokenizer", **special}
    _write_json(folder / "vocab.json", tokens, sort_keys=False)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_bytes(("\n".join(lines) + "\n").encode())
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Any, sort_keys: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n").encode())
