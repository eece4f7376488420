"""Tell an SDXL base from what is none, by names and shapes alone: another model, a LoRA, a part of a model."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorabuild.bases.layout import COMPONENTS_FILE, FOLDERS, LATENT_CHANNELS, PREFIXES
from lorabuild.header import Header, TensorInfo, read_header

Tensors = Mapping[str, TensorInfo]

# What only the names of a LoRA have in them: kohya's beginnings, peft's and LyCORIS' ends, those of diffusers' first ones.
_LORA = (
    *("lora_unet_", "lora_te", ".lora_down", ".lora_up", ".lora_A", ".lora_B", "_lora.down", "_lora.up"),
    *(".hada_w1", ".lokr_w1", ".dora_scale", ".diff_b", ".oft_"),
)
_UNET = PREFIXES["unet"]
# A name that begins so, with or without the U-Net's prefix -> the model that has it.
_OTHERS = {
    "double_blocks.": "a FLUX model",
    "joint_blocks.": "a Stable Diffusion 3 model",
    "single_transformer_blocks.": "a FLUX model",
    "transformer_blocks.": "a diffusion transformer",
    "cap_embedder.": "a Lumina model",
    "blocks.": "a diffusion transformer",
    "input_hint_block.": "a ControlNet",
}
_BESIDE = {
    "control_model.": "a ControlNet",
    "cond_stage_model.model.": "a Stable Diffusion 2 checkpoint",
    "cond_stage_model.": "a Stable Diffusion 1 checkpoint",
    "edm_mean": "a Playground checkpoint, trained on another noise (EDM)",
    "edm_vpred.": "a CosXL checkpoint, trained on another noise (EDM)",
}
_VAE = 'a VAE: [bases.<name>] takes one as vae = "…", beside file'
_PARTS = {
    **dict.fromkeys(("first_stage_model.", "encoder.", "decoder."), _VAE),
    **dict.fromkeys(("text_model.", "text_projection", "transformer.resblocks."), "a text encoder alone"),
    "conditioner.": "text encoders alone",
    **dict.fromkeys(("input_blocks.", "down_blocks.", _UNET), "a U-Net alone"),
    "emb_params": "an embedding",
    "clip_l": "an embedding",
}
_CHANNELS = {9: "an inpainting model", 8: "a model that edits pictures (InstructPix2Pix)", 5: "a depth model"}
# Width of the text that a U-Net is conditioned on -> whose it is; SDXL's is 2048.
_BY_TEXT = {768: "a Stable Diffusion 1 model", 1024: "a Stable Diffusion 2 model", 1280: "an SDXL refiner"}


def stranger(tensors: Tensors, wanted: Collection[str]) -> str | None:
    """What a single file is instead of an SDXL base, in words; None for one that may be a base, or have the parts `wanted`.

    What is not known is None, too: that its parts are not there is told by who looks for them.
    """
    if not wanted:
        return None
    if any(mark in name for name in tensors for mark in _LORA):
        return "not an SDXL base but a LoRA; [project] source and [recipe] init start from one"
    if set(wanted) == {"vae"} and _any(tensors, ("encoder.", PREFIXES["vae"])):
        return None
    for start, what in _OTHERS.items():
        if _any(tensors, (start, _UNET + start)) and not _any(tensors, (_UNET + "input_blocks.", "input_blocks.")):
            return f"not an SDXL checkpoint but {what}"
    for start, what in _BESIDE.items():
        if _any(tensors, (start,)):
            return f"not an SDXL checkpoint but {what}"
    return _by_unet(tensors) or _alone(tensors)


def _by_unet(tensors: Tensors) -> str | None:
    """By the U-Net in a file of SGM's layout, and by the text encoder that only a refiner has in the first place."""
    if said := _by_channels(tensors.get(_UNET + "input_blocks.0.0.weight")):
        return said
    if _any(tensors, ("conditioner.embedders.0.model.",)):
        return "not an SDXL base but its refiner, which no LoRA is trained on"
    text = next((one for name, one in tensors.items() if name.startswith(_UNET) and "attn2.to_k.weight" in name), None)
    labelled = _any(tensors, (_UNET + "label_emb.",))
    if text and len(text.shape) == 2 and text.shape[1] in _BY_TEXT and not labelled:
        return f"not an SDXL checkpoint but {_BY_TEXT[text.shape[1]]}"
    return None


def _by_channels(first: TensorInfo | None) -> str | None:
    if first is None or len(first.shape) != 4 or first.shape[1] == LATENT_CHANNELS:
        return None
    what = _CHANNELS.get(first.shape[1], "another model")
    return f"not an SDXL base but {what}: its U-Net takes {first.shape[1]} channels, not {LATENT_CHANNELS}"


def _alone(tensors: Tensors) -> str | None:
    """A file that holds one part of a model, and nothing else that is known."""
    kinds = {what for name in tensors for start, what in _PARTS.items() if name.startswith(start)}
    return f"not a whole SDXL checkpoint but {kinds.pop()}" if len(kinds) == 1 else None


def _any(tensors: Tensors, starts: tuple[str, ...]) -> bool:
    return any(name.startswith(starts) for name in tensors)


def folder_stranger(base: Path, wanted: Collection[str]) -> str | None:
    """What a folder is instead of an SDXL base in diffusers' layout, by what it says of itself; None if it may be one."""
    if set(wanted) <= {"vae"}:
        return None
    pipeline = str(_json(base / "model_index.json").get("_class_name", ""))
    unet = _json(base / FOLDERS["unet"] / "config.json")
    if not (base / FOLDERS["unet"]).is_dir():
        if (base / "transformer").is_dir():
            return f"not an SDXL base but {pipeline or 'a diffusion transformer'}: it has transformer/ where SDXL has unet/"
        if (base / "config.json").is_file():
            return f"not a whole base but one part of it: expected a folder with {', '.join(FOLDERS.values())} in it"
        return None
    if (channels := unet.get("in_channels", LATENT_CHANNELS)) != LATENT_CHANNELS:
        what = _CHANNELS.get(channels, "another model")
        return f"not an SDXL base but {what}: its U-Net takes {channels} channels, not {LATENT_CHANNELS}"
    if not (base / FOLDERS["te1"]).is_dir() and (base / FOLDERS["te2"]).is_dir():
        return "not an SDXL base but its refiner, which no LoRA is trained on"
    if unet and unet.get("addition_embed_type") != "text_time":
        what = _BY_TEXT.get(unet.get("cross_attention_dim"), pipeline or "another model")
        return f"not an SDXL base but {what}: its U-Net is not told of sizes"
    return None


def told_prediction(base: Path) -> tuple[str, str] | None:
    """What a base says of itself that it predicts, "epsilon" or "v_prediction", and where it says so; None if nowhere.

    Checkpoints that predict v hold an empty tensor `v_pred` (NoobAI's, and ComfyUI's own) or say it in ModelSpec's
    metadata; a folder says it in its scheduler's settings. A base that lorabuild made says nothing: its weights were
    never trained. Raises JobError and OSError as a header does.
    """
    if base.is_dir():
        if (base / COMPONENTS_FILE).is_file():
            return None
        scheduler = base / "scheduler" / "scheduler_config.json"
        said = _json(scheduler).get("prediction_type")
        return (said, "its scheduler_config.json") if said in ("epsilon", "v_prediction") else None
    return _prediction_of(read_header(base))


def _prediction_of(header: Header) -> tuple[str, str] | None:
    if mark := next((mark for mark in ("v_pred", "ztsnr") if mark in header.tensors), None):
        return "v_prediction", f"its tensor {mark}"
    said = {"v": "v_prediction", "epsilon": "epsilon"}.get(header.metadata.get("modelspec.prediction_type", ""))
    return (said, "its metadata (modelspec.prediction_type)") if said else None


def prediction_warning(base: Path, prediction_type: str) -> str | None:
    """One line where a base says that it predicts something else than lorabuild.toml says, or takes for granted."""
    told = told_prediction(base)
    if told is None or told[0] == prediction_type:
        return None
    return (
        f"{base.name} says that it predicts {'v' if told[0] == 'v_prediction' else 'the noise'} ({told[1]}), and is trained "
        f'as prediction_type = "{prediction_type}"; prediction_type = "{told[0]}" is what it asks for'
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
