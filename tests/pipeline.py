"""A LoRA in a real pipeline of diffusers: which parameters it changes, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lora_lab import layer
from tiny_base import tiny_folder
from torch import Tensor

from lorabuild.lora.sdxl_names import unet_layers

COMPONENTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
Weights = dict[tuple[str, str], Tensor]  # component and parameter
Tensors = dict[str, Tensor]
# Layers of all kinds
CROSS = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn2_to_k"
SELF = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_output_blocks_8_0_in_layers_2"
TE1 = "lora_te1_text_model_encoder_layers_0_"
TE2 = "lora_te2_text_model_encoder_layers_3_"


@cache
def toy_pipe() -> Any:
    """An SDXL of diffusers, of toy widths. Whoever changes it puts it back."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    return StableDiffusionXLPipeline.from_pretrained(tiny_folder(), local_files_only=True)


@cache
def toy_layers() -> dict[str, tuple[str, str]]:
    """kohya's name of each layer -> component, path of the module in it."""
    pipe = toy_pipe()
    found = {"lora_unet_" + one.sgm.replace(".", "_"): ("unet", one.diffusers) for one in unet_layers()}
    for encoder in ("te1", "te2"):
        for path, module in getattr(pipe, COMPONENTS[encoder]).named_modules():
            if isinstance(module, torch.nn.Linear):
                flat = path.removeprefix("text_model.").replace(".", "_")
                prefix = f"lora_{encoder}_" if flat == "text_projection" else f"lora_{encoder}_text_model_"
                found[prefix + flat] = (encoder, path)
    return found


def weights(pipe: Any) -> Weights:
    """All parameters, copied."""
    return {
        (component, name): parameter.detach().clone()
        for component, attribute in COMPONENTS.items()
        for name, parameter in getattr(pipe, attribute).named_parameters()
    }


def fused(pipe: Any, path: Path, before: Weights) -> Weights:
    """All parameters with the LoRA at `path` merged into them. The pipeline is as `before` afterwards."""
    pipe.load_lora_weights(path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = weights(pipe)
    for component, attribute in COMPONENTS.items():
        state = {name: tensor for (its, name), tensor in before.items() if its == component}
        getattr(pipe, attribute).load_state_dict(state, strict=False)
    return after


def differing(before: Weights, after: Weights, expected: Mapping[tuple[str, str], Tensor]) -> set[tuple[str, str]]:
    """Parameters that are not what they were plus what is expected: nothing at all, where nothing is."""
    assert before.keys() == after.keys() >= expected.keys()
    wrong = {name for name in before.keys() - expected.keys() if not torch.equal(before[name], after[name])}
    for name, delta in expected.items():
        weight = before[name].double().flatten(1)
        found = after[name].double().flatten(1) - weight
        assert not delta.any() or delta.norm() > 1e-4 * weight.norm(), f"{name}: right and wrong would be the same"
        if (found - delta).norm() > 2e-3 * delta.norm():
            wrong.add(name)
    return wrong


def of_parameters(by_layer: Mapping[str, Tensor], layers: Mapping[str, tuple[str, str]]) -> Weights:
    return {
        (component, f"{path}.weight"): by_layer[name] for name, (component, path) in layers.items() if name in by_layer
    }


@dataclass(frozen=True)
class Maker:
    """Makes LoRAs that fit the layers of the pipeline."""

    pipe: Any
    layers: Mapping[str, tuple[str, str]]

    def lora(self, *names: str, rank: int = 4, alpha: float | None = 2.0) -> Tensors:
        found: Tensors = {}
        for name in names:
            component, path = self.layers[name]
            out, *rest = getattr(self.pipe, COMPONENTS[component]).get_submodule(path).weight.shape
            found |= layer(name, out, rank, *rest, alpha=alpha, seed=sum(name.encode()))  # no two alike
        return found

    def peft(self, *names: str, unet: str = "unet.") -> Tensors:
        """The same in diffusers' names of today."""
        prefixes = {"unet": unet, "te1": "text_encoder.text_model.", "te2": "text_encoder_2.text_model."}
        found: Tensors = {}
        for name in names:
            component, path = self.layers[name]
            key = prefixes[component] + path.removeprefix("text_model.")
            lora = self.lora(name)
            found |= {f"{key}.lora_A.weight": lora[f"{name}.lora_down.weight"]}
            found |= {f"{key}.lora_B.weight": lora[f"{name}.lora_up.weight"]}
        return found
