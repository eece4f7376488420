"""Recognise a module of SDXL by whatever name a LoRA file gives it: kohya's, diffusers', PEFT's, with or without prefix."""

from __future__ import annotations

import re
from functools import lru_cache

from lorabuild.lora.keymap import PREFIX, to_sgm
from lorabuild.names import block_of

# How the names of a component's modules begin, dots written as underscores. The first that fits counts.
_PREFIXES = (
    (
        re.compile(
            r"lora_te1_|text_encoder_(?!2)|(?:text_encoders_)?clip_l_transformer_|conditioner_embedders_0_transformer_"
        ),
        "te1",
    ),
    (re.compile(r"lora_te2_|text_encoder_2_|(?:text_encoders_)?clip_g_transformer_"), "te2"),
    (re.compile(r"lora_unet_|lycoris_unet_|lycoris_|unet_|model_diffusion_model_|diffusion_model_"), "unet"),
)
_CLIP = re.compile(r"(?:text_model_)?(encoder_layers_\d+_(?:self_attn_(?:q|k|v|out)_proj|mlp_fc[12]))")
_SGM = re.compile(r"(?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_\d.*")
_OLD_TO_OUT = re.compile(r"(_attn[12]_to_out)$")  # diffusers' first LoRA files leave out the 0 of to_out.0
TEXT_PROJECTION = "lora_te2_text_projection"


@lru_cache(maxsize=8192)
def canonical(module: str) -> str | None:
    """kohya's name, with SGM's block names, of the SDXL module that a LoRA file calls `module`; None if it is none.

    `lora_unet_down_blocks_1_attentions_0_proj_in`, `unet.down_blocks.1.attentions.0.proj_in` and
    `input_blocks_4_1_proj_in` are all `lora_unet_input_blocks_4_1_proj_in`. Says nothing of whether a base has it.
    """
    name = module.removeprefix("base_model.model.").replace(".processor", "").replace(".", "_")
    component, rest = "unet", name
    for prefix, found in _PREFIXES:
        if match := prefix.match(name):
            component, rest = found, name[match.end() :]
            break
    if component != "unet":
        if match := _CLIP.fullmatch(rest):
            return f"{PREFIX[component]}text_model_{match[1]}"
        return TEXT_PROJECTION if (component, rest) == ("te2", "text_projection") else None
    if _SGM.fullmatch(rest):
        return PREFIX["unet"] + rest
    try:
        return PREFIX["unet"] + _OLD_TO_OUT.sub(r"\1_0", to_sgm(rest)).replace(".", "_")
    except ValueError:
        return None


def block_of_module(module: str) -> str | None:
    """The block of a module by any of its names: `unet.mid_block.resnets.0.conv1` -> MID00. None if it is in none."""
    if block := block_of(module):
        return block
    name = canonical(module)
    return block_of(name) if name else None
