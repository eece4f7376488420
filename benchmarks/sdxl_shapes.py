"""Write a checkpoint and a LoRA of random numbers in the very shapes of SDXL's: deterministic, in constant memory."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from lorabuild.lora.keymap import PREFIX, adaptable_modules, to_sgm
from lorabuild.writing import header_bytes

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]
Pieces = Callable[[str], "Iterable[torch.Tensor]"]
VERSION = 1  # raise when the files change: a folder of another version is filled anew
BLOCK = 1 << 24  # random numbers that all tensors of the checkpoint are cut from: 64 MiB
CHUNK = 1 << 20  # numbers written at once

UNET_KEY, VAE_KEY = "model.diffusion_model.", "first_stage_model."
TE1_KEY, TE2_KEY = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
UNET = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "projection_class_embeddings_input_dim": 2816, "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
VAE_NAMES = {  # diffusers' -> LDM's, whose decoder counts its levels from the other end
    **{f"up_blocks.{level}.": f"up.{3 - level}." for level in range(4)}, "down_blocks.": "down.", ".resnets.": ".block.",
    "mid_block.block.0": "mid.block_1", "mid_block.block.1": "mid.block_2", "mid_block.attentions.0.": "mid.attn_1.",
    "samplers.0.": "sample.", "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "group_norm": "norm",
    "to_out.0.": "proj_out.", ".to_": ".",
}  # fmt: skip

# Modules of a text encoder's layer, with their shapes in multiples of its width: CLIP-L's are transformers', bigG's OpenCLIP's.
ATTENTION = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.", "self_attn.out_proj.")
CLIP = {**dict.fromkeys(ATTENTION, (1, 1)), "mlp.fc1.": (4, 1), "mlp.fc2.": (1, 4)}
CLIP_NORMS = {"layer_norm1.": (1,), "layer_norm2.": (1,)}
OPEN_CLIP = {
    "attn.in_proj_": (3, 1), "attn.out_proj.": (1, 1), "mlp.c_fc.": (4, 1), "mlp.c_proj.": (1, 4),
    "ln_1.": (1,), "ln_2.": (1,),
}  # fmt: skip
WIDTH, LAYERS = {"te1": 768, "te2": 1280}, {"te1": 12, "te2": 32}

RANK, KERNEL_RANK, ALPHA = 8, 256, 4.0  # the guide's network_dim, its conv_dim (for k×k only), and both alphas
DECADES = 2.0  # from a layer's largest to its smallest singular value
LEVEL, SPREAD = -2.55, 0.5  # log10 σ_1/‖W‖ of a layer, ±: fro_ckpt=1,thr=-3.55 keeps about half of the bytes
METADATA = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_network_alpha": "4.0",
    "ss_network_args": json.dumps({"algo": "locon", "preset": "full", "conv_dim": "256", "conv_alpha": "4"}),
    "ss_network_dim": "8",
    "ss_network_module": "lycoris.kohya",
    "ss_output_name": "guide",
    "ss_tag_frequency": json.dumps({"1_guide": {f"tag {number}": 200 - number for number in range(200)}}),
    "ss_v2": "False",
}


@dataclass(frozen=True)
class Data:
    """The files to measure on; `norms` is what the stage `norms` would find in the checkpoint, to a percent or two."""

    folder: Path
    base: Path
    guide: Path
    norms: Path


def ensure(folder: Path) -> Data:
    """The files in `folder`, some seven gigabytes: written now unless they are complete there."""
    data = Data(folder, *(folder / name for name in ("sdxl.safetensors", "guide.safetensors", "norms.json")))
    stamp = folder / "complete.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != VERSION:
        sys.stderr.write(f"writing SDXL's shapes to {folder} …\n")
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        shapes, layers = sdxl()
        _write(data.base, shapes, {}, _base_pieces(shapes))
        _write(data.guide, dict(_guide_shapes(layers)), METADATA, lambda name: [_guide_tensor(name, layers)])
        data.norms.write_text(json.dumps(_norms(layers)))
        stamp.write_text(json.dumps(VERSION))
    return data


def sdxl() -> tuple[Shapes, Shapes]:
    """The 2,515 tensors of SDXL's single file, and by kohya's name the 1,052 layers that preset "full" adapts."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        models = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    unet, vae = ({name: tuple(one.shape) for name, one in model.state_dict().items()} for model in models)
    shapes = {UNET_KEY + to_sgm(name): shape for name, shape in unet.items()}
    shapes |= dict(_vae_shape(name, shape) for name, shape in vae.items())
    weights = [name.removesuffix(".weight") for name in unet if name.endswith(".weight")]
    layers = {name: unet[f"{path}.weight"] for name, path in adaptable_modules("unet", weights).items()}
    return shapes | _clip_shapes() | _open_clip_shapes(), layers | dict(_text_layers())


def _vae_shape(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """LDM's attention is made of 1×1 convolutions, diffusers' of matrices."""
    for diffusers, ldm in VAE_NAMES.items():
        name = name.replace(diffusers, ldm)
    return VAE_KEY + name, (*shape, 1, 1) if "attn_1" in name and len(shape) == 2 else shape


def _clip_shapes() -> Shapes:
    layer = CLIP | CLIP_NORMS
    modules = {f"encoder.layers.{n}.{name}": shape for n in range(LAYERS["te1"]) for name, shape in layer.items()}
    shapes = _weights_and_biases(WIDTH["te1"], modules | {"final_layer_norm.": (1,)})
    tables = {"token_embedding.weight": (49408, 768), "position_embedding.weight": (77, 768), "position_ids": (1, 77)}
    shapes |= {f"embeddings.{name}": shape for name, shape in tables.items()}
    return {TE1_KEY + name: shape for name, shape in shapes.items()}


def _open_clip_shapes() -> Shapes:
    blocks = [f"transformer.resblocks.{n}." for n in range(LAYERS["te2"])]
    modules = {block + name: shape for block in blocks for name, shape in OPEN_CLIP.items()}
    shapes = _weights_and_biases(WIDTH["te2"], modules | {"ln_final.": (1,)})
    shapes |= {"token_embedding.weight": (49408, 1280), "positional_embedding": (77, 1280)}
    shapes |= {"text_projection": (1280, 1280), "logit_scale": ()}
    return {TE2_KEY + name: shape for name, shape in shapes.items()}


def _weights_and_biases(width: int, modules: Shapes) -> Shapes:
    weights = {name: tuple(width * times for times in shape) for name, shape in modules.items()}
    biases = {f"{name}bias": shape[:1] for name, shape in weights.items()}
    return {f"{name}weight": shape for name, shape in weights.items()} | biases


def _text_layers() -> Iterator[tuple[str, tuple[int, ...]]]:
    """kohya counts the modules of both text encoders as transformers does."""
    for encoder, width in WIDTH.items():
        for n in range(LAYERS[encoder]):
            for module, (rows, columns) in CLIP.items():
                name = f"text_model_encoder_layers_{n}_{module.removesuffix('.').replace('.', '_')}"
                yield PREFIX[encoder] + name, (width * rows, width * columns)


def _write(path: Path, shapes: Shapes, metadata: Mapping[str, str], pieces: Pieces) -> None:
    """A canonical file of these tensors, each of which comes in pieces."""
    dtypes = {name: "I64" if name.endswith("position_ids") else "F16" for name in shapes}
    with open(path, "wb") as file:
        file.write(header_bytes([(name, dtypes[name], shape) for name, shape in shapes.items()], metadata))
        for name in sorted(shapes):
            for piece in pieces(name):
                file.write(piece.numpy())


def _base_pieces(shapes: Shapes) -> Pieces:
    """Normal numbers: those of a matrix of fan-in n have deviation 1/√n, of a bias 0.02, of a norm 1 ± 0.1."""
    import torch

    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))

    def pieces(name: str) -> Iterator[torch.Tensor]:
        shape = shapes[name]
        if name.endswith("position_ids"):
            yield torch.arange(prod(shape))
            return
        mean, deviation = (0.0, 0.02) if name.endswith("bias") else (1.0, 0.1)
        if len(shape) > 1:
            mean, deviation = 0.0, prod(shape[1:]) ** -0.5
        at, left = crc32(name.encode()) % BLOCK, prod(shape)
        while left:
            piece = block[at : at + min(left, CHUNK)]
            yield piece.mul(deviation).add_(mean).half()
            at, left = (at + len(piece)) % BLOCK, left - len(piece)

    return pieces


def _norm(shape: tuple[int, ...]) -> float:
    """‖W‖_F of a layer of the checkpoint: O·n numbers of deviation 1/√n."""
    return shape[0] ** 0.5


def _norms(layers: Shapes) -> dict[str, dict[str, Any]]:
    """The spectral norm of such a layer is near 1 + √(O/n), the edge of Marchenko and Pastur's law."""
    return {
        "shape": layers,
        "fro_ckpt": {name: _norm(shape) for name, shape in layers.items()},
        "spn_ckpt": {name: 1 + (shape[0] / prod(shape[1:])) ** 0.5 for name, shape in layers.items()},
    }


def _guide_shapes(layers: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, (rows, *columns) in layers.items():
        yield f"{name}.lora_up.weight", (rows, _rank(layers[name]), *(1 for _ in columns[1:]))
        yield f"{name}.lora_down.weight", (_rank(layers[name]), *columns)
        yield f"{name}.alpha", ()


def _rank(shape: tuple[int, ...]) -> int:
    return KERNEL_RANK if prod(shape[2:]) > 1 else RANK


def _guide_tensor(tensor: str, layers: Shapes) -> torch.Tensor:
    """alpha / R · up @ down has about the singular values σ_i = σ_1 · 10^(-DECADES · i/(R-1)); each half has √σ_i."""
    import torch

    name, _, part = tensor.partition(".")
    if part == "alpha":
        return torch.tensor(ALPHA).half()
    shape, rank = layers[name], _rank(layers[name])
    largest = LEVEL + random.Random(name).uniform(-SPREAD, SPREAD)
    roots = (10 ** (largest - DECADES * torch.linspace(0, 1, rank)) * _norm(shape) * rank / ALPHA).sqrt()
    length = shape[0] if part == "lora_up.weight" else prod(shape[1:])
    vectors = torch.randn(rank, length, generator=torch.Generator().manual_seed(crc32(tensor.encode())))
    vectors *= (roots / length**0.5)[:, None]
    return (vectors.T.contiguous() if part == "lora_up.weight" else vectors).half()
