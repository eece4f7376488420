"""LoRA files of every flavour made by rule, the weight stages run on them by hand, and what a file adds to a base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lorabuild.lora.ranks import parse_recipe, resolve_recipe
from lorabuild.lora.sdxl_names import TEXT_LAYERS, text_layers, unet_layers
from lorabuild.stage import Job, Stage
from lorabuild.stages.resize import STAGE as RESIZE
from lorabuild.stages.spectrum import STAGE as SPECTRUM
from lorabuild.workspace import Workspace

GOLDENS = Path(__file__).parent / "goldens/resize"

# Modules of SDXL, by kohya's names; what is adapted has any small shape here.
LINEAR = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
CONV = "lora_unet_input_blocks_1_0_in_layers_2"
POINT = "lora_unet_output_blocks_1_0_skip_connection"

# How up and down are called: kohya, PEFT, diffusers, and diffusers' first files.
PAIRS = (
    (".lora_up.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
)

# Kind of adapter -> the weight [O, I, *k] that it changes, its tensors by role. LyCORIS' modules and its functional
# forms differ in whether a factor of a convolution is flat.
ADAPTERS: dict[str, tuple[tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "lora": ((24, 16), {"up": (24, 4), "down": (4, 16)}),
    "lora 1x1": ((24, 16, 1, 1), {"up": (24, 4, 1, 1), "down": (4, 16, 1, 1)}),
    "lora 3x3": ((24, 16, 3, 3), {"up": (24, 4, 1, 1), "down": (4, 16, 3, 3)}),
    "lora of more ranks than rows": ((6, 16), {"up": (6, 9), "down": (9, 16)}),
    "lora tucker": ((24, 16, 3, 3), {"up": (24, 4, 1, 1), "down": (4, 16, 1, 1), "mid": (4, 4, 3, 3)}),
    "lora tucker of two ranks": ((24, 16, 3, 3), {"up": (24, 3, 1, 1), "down": (4, 16, 1, 1), "mid": (3, 4, 3, 3)}),
    "loha": ((24, 16), {"w1_a": (24, 3), "w1_b": (3, 16), "w2_a": (24, 3), "w2_b": (3, 16)}),
    "loha of full rank": ((24, 16), {"w1_a": (24, 6), "w1_b": (6, 16), "w2_a": (24, 6), "w2_b": (6, 16)}),
    "loha 3x3": ((24, 16, 3, 3), {"w1_a": (24, 4), "w1_b": (4, 144), "w2_a": (24, 4), "w2_b": (4, 144)}),
    "loha tucker": (
        (24, 16, 3, 3),
        {part: (4, 4, 3, 3) if part[0] == "t" else (4, 24 if part[-1] == "a" else 16) for part in (
            "w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2",
        )},
    ),
    "lokr": ((24, 16), {"w1": (4, 4), "w2": (6, 4)}),
    "lokr w2 factored": ((24, 16), {"w1": (4, 4), "w2_a": (6, 2), "w2_b": (2, 4)}),
    "lokr w1 factored": ((24, 16), {"w1_a": (4, 3), "w1_b": (3, 4), "w2": (6, 4)}),
    "lokr both factored": ((24, 16), {"w1_a": (4, 3), "w1_b": (3, 4), "w2_a": (6, 2), "w2_b": (2, 4)}),
    "lokr 3x3": ((24, 16, 3, 3), {"w1": (4, 4), "w2": (6, 4, 3, 3)}),
    "lokr 3x3 w2 factored, flat": ((24, 16, 3, 3), {"w1": (4, 4), "w2_a": (6, 2), "w2_b": (2, 36)}),
    "lokr 3x3 both factored": ((24, 16, 3, 3), {"w1_a": (4, 3), "w1_b": (3, 4), "w2_a": (6, 2), "w2_b": (2, 4, 3, 3)}),
    "lokr tucker": ((24, 16, 3, 3), {"w1": (4, 4), "w2_a": (2, 6), "w2_b": (2, 4), "t2": (2, 2, 3, 3)}),
    "lokr tucker w1 factored": (
        (24, 16, 3, 3),
        {"w1_a": (4, 3), "w1_b": (3, 4), "w2_a": (2, 6), "w2_b": (2, 4), "t2": (2, 2, 3, 3)},
    ),
    "full": ((24, 16), {"diff": (24, 16)}),
    "full 3x3": ((24, 16, 3, 3), {"diff": (24, 16, 3, 3)}),
}  # fmt: skip
_ROLE_SUFFIX = {"lora": ".lora_{}.weight", "loha": ".hada_{}", "lokr": ".lokr_{}", "full": ".{}"}


@dataclass
class Done:
    """What a stage left: its outputs by role in `folder`, its notes for the run log, its warnings, its progress."""

    folder: Path
    notes: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    progress: list[tuple[int, int, str]] = field(default_factory=list)

    def path(self, role: str) -> Path:
        return self.folder / role


def run(stage: Stage, folder: Path, params: dict, options: dict | None = None, **inputs: Path) -> Done:
    """Run `stage` in `folder` on these input files, as a worker would."""
    for name in ("staging", "scratch", "pieces"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    done = Done(folder / "staging", {})
    workspace = Workspace(folder / "staging", folder / "scratch", folder / "pieces", paths=inputs, notes=done.notes)
    workspace.warn = done.warnings.append
    job = Job(f"{stage.name}:ember", params, {}, [], (), options or {})
    stage.run(job, workspace, lambda *step: done.progress.append(step))
    return done


def resize(
    folder: Path, weights: Path, norms: Path, recipe: float | str, save_precision: str = "fp16", header_kib: int = 0
) -> Done:
    """Spectrum and resize, one after the other. `recipe` is a threshold of fro_ckpt, or a recipe.

    Where it has a size, `header_kib` of it are for the header of the published file, which tells nothing more.
    """
    inputs = {"spectrum": run(SPECTRUM, folder / "spectrum", {}, weights=weights, norms=norms).path("spectrum")}
    params = resize_params(recipe, save_precision)
    if "size" in params["resize"]:
        params["resize"]["header_kib"] = header_kib
        inputs["told"] = write_lora(folder / "told.safetensors", {})
    return run(RESIZE, folder / "resize", params, **inputs)


def resize_params(recipe: float | str, save_precision: str = "fp16", allow_empty: bool = False) -> dict:
    table = resolve_recipe(parse_recipe(recipe) if isinstance(recipe, str) else {"fro_ckpt": 1.0, "thr": recipe})
    return {
        "resize": table | ({"allow_empty": True} if allow_empty else {}),
        "recipe": {"save_precision": save_precision},
    }


def write_norms(
    path: Path, norms: Mapping[str, float], weights: Path, spectral: Mapping[str, float] | None = None
) -> Path:
    """The norms of a base that has these layers, of the shapes that the LoRA `weights` gives them; 1 for the spectral."""
    found = {name: one for name, one in shapes(weights).items() if name in norms}
    return write_measures(path, found, norms, spectral or dict.fromkeys(norms, 1.0))


def write_measures(path: Path, shape: Mapping, fro_ckpt: Mapping[str, float], spn_ckpt: Mapping[str, float]) -> Path:
    path.write_text(json.dumps({"shape": shape, "fro_ckpt": fro_ckpt, "spn_ckpt": spn_ckpt}))
    return path


def layer(
    name: str, out: int, rank: int, *rest: int, alpha: float | None = 2.0, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random up, down and alpha of a layer [out, *rest]; rest is in channels and, for a convolution, its kernel."""
    random = torch.Generator().manual_seed(seed)
    tensors = {
        f"{name}.lora_up.weight": torch.randn(out, rank, *[1] * (len(rest) - 1), generator=random) / out**0.5,
        f"{name}.lora_down.weight": torch.randn(rank, *rest, generator=random) / np.prod(rest) ** 0.5,
    }
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def adapter(
    kind: str, name: str, alpha: float | None = 2.0, seed: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A random adapter of one of ADAPTERS, in halves, and what it adds to the base [O, J]: LyCORIS' own formulas."""
    from lycoris import functional

    shape, sizes = ADAPTERS[kind]
    flavour, random = kind.partition(" ")[0], torch.Generator().manual_seed(seed)
    parts = {role: (torch.randn(size, generator=random) / 2).half() for role, size in sizes.items()}
    get = {role: one.double() for role, one in parts.items()}.get
    match flavour:
        case "lora":
            delta, rank = (
                functional.locon.diff_weight(get("down"), get("up"), get("mid"), backend="torch"),
                sizes["down"][0],
            )
        case "loha":
            wanted = [get(role) for role in ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")]
            delta, rank = (
                functional.loha.diff_weight(*wanted, gamma=torch.tensor(1.0), backend="torch"),
                sizes["w1_b"][0],
            )
        case "lokr":
            wanted = [get(role) for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
            delta = functional.lokr.kron_weight(*wanted, scale=1.0, backend="torch")
            rank = (sizes.get("w2_b") or sizes.get("w1_b") or (None,))[0]
        case "full":
            delta, rank = get("diff"), None
    scale = 1.0 if alpha is None or rank is None else torch.tensor(alpha).half().item() / rank
    tensors = {name + _ROLE_SUFFIX[flavour].format(role): one for role, one in parts.items()}
    return tensors | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha).half()}), scale * delta.reshape(
        shape[0], -1
    )


def write_lora(path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = torch.float16) -> Path:
    """All tensors in `dtype`, or each in its own if None."""
    save_file({name: (one.to(dtype) if dtype else one).contiguous() for name, one in tensors.items()}, path)
    return path


def base_modules() -> list[str]:
    """Every module of SDXL that a LoRA can change, by kohya's names."""
    unet = [f"lora_unet_{flat(one.sgm)}" for one in unet_layers() if one.kind != "norm"]
    text = [f"lora_te{encoder}_{flat(path)}" for encoder in (1, 2) for path in text_layers(encoder)]
    return [*unet, *text, "lora_te2_text_projection"]


def write_bases(folder: Path, weights: Mapping[str, torch.Tensor]) -> tuple[Path, Path]:
    """One base in both layouts, SGM's single file and diffusers' folder; `weights` by kohya's names.

    Of an attention of te2 it takes q, k and v, or none. Other tensors, that no LoRA changes, stand among them.
    """
    one: dict[str, torch.Tensor] = {"first_stage_model.encoder.conv_in.weight": torch.full((8, 3, 3, 3), torch.nan)}
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text_encoder": {}, "text_encoder_2": {}}
    for layer in unet_layers():
        if (weight := weights.get(f"lora_unet_{flat(layer.sgm)}")) is not None:
            for key, path in ((f"model.diffusion_model.{layer.sgm}", one), (layer.diffusers, parts["unet"])):
                path[f"{key}.weight"], path[f"{key}.bias"] = weight, torch.full((len(weight),), 7.0)
    for path in text_layers(1):
        if (weight := weights.get(f"lora_te1_{flat(path)}")) is not None:
            one[f"conditioner.embedders.0.transformer.{path}.weight"] = parts["text_encoder"][f"{path}.weight"] = weight
    for path in text_layers(2):
        if (weight := weights.get(f"lora_te2_{flat(path)}")) is not None:
            parts["text_encoder_2"][f"{path}.weight"] = weight
    one |= {f"conditioner.embedders.1.model.{key}": weight for key, weight in _openclip(weights).items()}
    if (weight := weights.get("lora_te2_text_projection")) is not None:
        parts["text_encoder_2"]["text_projection.weight"] = weight
    for name, prefix in (
        ("text_encoder", "conditioner.embedders.0.transformer.text_model.embeddings."),
        ("text_encoder_2", "conditioner.embedders.1.model."),
    ):
        embedding = torch.full((5, 2), torch.nan)
        one[f"{prefix}token_embedding.weight"] = embedding
        parts[name]["text_model.embeddings.token_embedding.weight"] = embedding

    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: weight.contiguous() for key, weight in one.items()}, folder / "sdxl.safetensors")
    for name, tensors in parts.items():
        (folder / "diffusers" / name).mkdir(parents=True)
        file = "diffusion_pytorch_model" if name == "unet" else "model"
        tensors = {key: weight.contiguous() for key, weight in tensors.items()}
        save_file(tensors, folder / "diffusers" / name / f"{file}.safetensors")
    return folder / "sdxl.safetensors", folder / "diffusers"


def _openclip(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """te2 as SGM's file has it: q, k and v in one, in this order; the projection is applied from the other side."""
    found = {}
    for number in range(TEXT_LAYERS[2]):
        layer, block = f"lora_te2_text_model_encoder_layers_{number}_", f"transformer.resblocks.{number}."
        if f"{layer}self_attn_q_proj" in weights:
            found[f"{block}attn.in_proj_weight"] = torch.cat(
                [weights[f"{layer}self_attn_{part}_proj"] for part in "qkv"]
            )
        for ours, theirs in (
            ("self_attn_out_proj", "attn.out_proj"),
            ("mlp_fc1", "mlp.c_fc"),
            ("mlp_fc2", "mlp.c_proj"),
        ):
            if layer + ours in weights:
                found[f"{block}{theirs}.weight"] = weights[layer + ours]
        found[f"{block}ln_1.weight"] = torch.ones(2)
    if "lora_te2_text_projection" in weights:
        found["text_projection"] = weights["lora_te2_text_projection"].T
    return found


def flat(path: str) -> str:
    return path.replace(".", "_")


def read(path: Path) -> dict[str, torch.Tensor]:
    """All tensors, by the library."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary


def pairs(path: Path) -> dict[str, tuple[str, str]]:
    """Layer -> the names of its up and down."""
    names = read(path).keys()
    found = {}
    for up, down in PAIRS:
        layers = [name.removesuffix(up) for name in names if name.endswith(up)]
        found |= {layer: (layer + up, layer + down) for layer in layers if layer + down in names}
    return found


def ranks(path: Path) -> dict[str, int]:
    """Layer -> its rank."""
    tensors = read(path)
    return {name: tensors[down].shape[0] for name, (_, down) in pairs(path).items()}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of the weight that it changes."""
    tensors = read(path)
    return {name: (tensors[up].shape[0], *tensors[down].shape[1:]) for name, (up, down) in pairs(path).items()}


def deltas(path: Path) -> dict[str, torch.Tensor]:
    """Layer -> alpha / rank · up @ down [O, I·k] in float64: what a loader adds to the base's weight."""
    tensors = {name: one.double() for name, one in read(path).items()}
    found = {}
    for name, keys in pairs(path).items():
        up, down = (tensors[key].flatten(1) for key in keys)
        found[name] = up @ down * (tensors[f"{name}.alpha"] / len(down) if f"{name}.alpha" in tensors else 1)
    return found


@dataclass
class Decomposed:
    """A layer of a spectrum: what it adds to the base is u · diag(s) · vh, u [O, P], s [P], vh [P, I, *k]."""

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor
    base_norms: list[float]
    subspace: torch.Tensor | None

    @property
    def effect(self) -> torch.Tensor:
        return self.u.double() * self.s.double() @ self.vh.double().flatten(1)


def read_spectrum(path: Path) -> tuple[dict[str, Decomposed], dict[str, torch.Tensor]]:
    """The layers of a spectrum by name, and its other tensors: `=` begins the names of those that only travel."""
    tensors = read(path)
    layers = {name: keys for name, keys in sorted(pairs(path).items()) if not name.startswith("=")}
    singular, norms = tensors.pop("S"), tensors.pop("base_norms")
    subspace = tensors.pop("subspace", None)
    found, start = {}, 0
    for (name, keys), pair in zip(layers.items(), norms.tolist(), strict=True):
        up, down = (tensors.pop(key) for key in keys)
        own = slice(start, start := start + len(up))
        found[name] = Decomposed(up.T, singular[own], down, pair, None if subspace is None else subspace[own])
    assert start == len(singular)
    return found, tensors


def best(delta: torch.Tensor, rank: int) -> torch.Tensor:
    """The matrix of this rank that is nearest to `delta` (Eckart-Young)."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one - other‖ / ‖other‖, in Frobenius' norm."""
    return ((one - other).norm() / other.norm()).item()
