"""Name every layer of SDXL as the LoRA world does: diffusers' module path -> SGM's path -> kohya's name; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

# LoCon modules of each component by LyCORIS' preset "full": exactly what an adapter must have.
EXPECTED = {"unet": 788, "te1": 72, "te2": 192}
PREFIX = {"unet": "lora_unet_", "te1": "lora_te1_", "te2": "lora_te2_"}

LAYERS_PER_BLOCK = 2  # ResNets of a down block in SDXL; an up block has one more
_GROUP = LAYERS_PER_BLOCK + 1  # a level takes three SGM blocks: two ResNets and a resampler, or three ResNets

# Layers that stand in no down, mid or up block. Preset "full" leaves them alone.
_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_TOP_BY_NAME = {top.replace(".", "_"): sgm for top, sgm in _TOP.items()}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# OpenCLIP's names of what transformers calls so, in a layer and outside of layers.
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPENCLIP_OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
# Dots of a path may be underscores, as in kohya's names.
_BLOCK = re.compile(
    r"(?:(?P<side>down|up)_blocks[._](?P<level>\d+)|(?P<mid>mid)_block)"
    r"[._](?P<kind>resnets|attentions|downsamplers|upsamplers)[._](?P<index>\d+)[._](?P<layer>.+)"
)
_TOP_LAYER = re.compile("({})(?=[._]|$)(.*)".format("|".join(top.replace(".", "[._]") for top in _TOP)))
_RESNET_LAYER = re.compile("({})(?=[._]|$)(.*)".format("|".join(_RESNET)))
_UNET_LAYER = re.compile(
    r"resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)"
    r"|attentions\.\d+\.(?:proj_in|proj_out|transformer_blocks\.\d+\.(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))"
    r"|(?:down|up)samplers\.0\.conv"
)
_CLIP_LAYER = re.compile(r"(?:text_model\.)?(encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12]))")


def to_sgm(path: str) -> str:
    """The SGM (original SDXL checkpoint) path of a module of diffusers' SDXL U-Net, or of a parameter in it.

    `down_blocks.1.attentions.0.proj_in` -> `input_blocks.4.1.proj_in`. Underscores may stand for the dots, as kohya's
    names have them; what follows the block then keeps its own. Raises ValueError for a path that SDXL does not have.
    The rules are the layout of the two U-Nets; the names match those of kohya's trainer, one for one.
    """
    if match := _TOP_LAYER.fullmatch(path):
        return _TOP_BY_NAME[match[1].replace(".", "_")] + match[2]
    match = _BLOCK.fullmatch(path)
    if match is None or (match["kind"] == "resnets" and not _RESNET_LAYER.fullmatch(match["layer"])):
        raise ValueError(f"{path}: not a layer of SDXL's U-Net")
    return f"{_block(match)}.{_layer(match['kind'], match['layer'])}"


def lora_name(component: str, path: str) -> str:
    """kohya's name of the adapter on a module of "unet", "te1" or "te2".

    `path` is the module's own in diffusers or transformers, where a text encoder's may begin with `text_model.` or not:
    kohya's names always have it.
    """
    if component == "unet":
        sgm = to_sgm(path)
    elif match := _CLIP_LAYER.fullmatch(path):
        sgm = f"text_model.{match[1]}"
    else:
        raise ValueError(f"{path}: not an adaptable layer of a CLIP text encoder")
    return PREFIX[component] + sgm.replace(".", "_")


def adaptable_modules(component: str, paths: Iterable[str]) -> dict[str, str]:
    """kohya's name -> path, of those modules among `paths` that LyCORIS' preset "full" adapts, in the order given.

    `paths` are module paths, or names of weights without `.weight`, as a checkpoint in diffusers' layout has them.
    """
    layer = _is_adaptable_unet if component == "unet" else _CLIP_LAYER.fullmatch
    return {lora_name(component, path): path for path in paths if layer(path)}


def _is_adaptable_unet(path: str) -> bool:
    match = re.fullmatch(r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(.+)", path)
    return bool(match and _UNET_LAYER.fullmatch(match[1]))


def _block(match: re.Match[str]) -> str:
    """The SGM block and the slot in it: 0 a ResNet or a downsampler, 1 attention, 2 an upsampler."""
    kind, index = match["kind"], int(match["index"])
    if match["mid"]:
        return "middle_block.1" if kind == "attentions" else f"middle_block.{2 * index}"
    first = _GROUP * int(match["level"])
    if match["side"] == "down":  # input block 0 is conv_in, so that level 0 begins at 1
        if kind == "downsamplers":
            return f"input_blocks.{first + _GROUP}.0"
        return f"input_blocks.{1 + first + index}.{int(kind == 'attentions')}"
    if kind == "upsamplers":  # in the block of the level's last ResNet, after its attention
        return f"output_blocks.{first + LAYERS_PER_BLOCK}.2"
    return f"output_blocks.{first + index}.{int(kind == 'attentions')}"


def _layer(kind: str, layer: str) -> str:
    if kind == "downsamplers":
        return layer.replace("conv", "op", 1)
    if kind == "resnets" and (match := _RESNET_LAYER.fullmatch(layer)):
        return _RESNET[match[1]] + match[2]
    return layer
