"""The built-in base, written once for all tests of a session, and a small training on it without an engine."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lorabuild.components import folder_digests
from lorabuild.hashing import digest_file
from lorabuild.nn.base import Base, load_text_encoders, load_tokenizers, load_unet
from lorabuild.nn.tiny import write_tiny
from lorabuild.stage import Job
from lorabuild.workspace import Workspace
from lorabuild.writing import write_body

# Equal bytes are promised at an equal number of threads, and the trainings that are killed run in other processes.
torch.set_num_threads(1)

RECIPE: dict[str, Any] = {
    "network_dim": 4,
    "network_alpha": 2.0,
    "network_args": {"algo": "locon", "preset": "full", "conv_dim": 2, "conv_alpha": 1.0},
    "optimizer_type": "AdamW",
    "optimizer_args": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
    "unet_lr": 5e-3,
    "text_encoder_lr": 1e-3,
    "lr_scheduler": "cosine",
    "lr_scheduler_args": {"num_cycles": 0.375},
    "lr_warmup_steps": 0,
    "max_train_steps": 3,
    "train_batch_size": 3,
    "gradient_accumulation_steps": 1,
    "multires_noise_iterations": 4,
    "multires_noise_discount": 0.4,
    "mixed_precision": "no",
    "save_precision": "fp16",
    "max_grad_norm": 1.0,
    "seed": 7,
}
SETTINGS = {"flip_aug": True, "shuffle_caption": True, "keep_tokens": 1, "caption_separator": ","}


@cache
def tiny_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lorabuild-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_tiny(folder)
    return folder


@cache
def tiny_digests() -> dict[str, str]:
    return folder_digests(tiny_folder())


def tiny_base(dtype: torch.dtype = torch.float32) -> Base:
    folder, digests = tiny_folder(), tiny_digests()
    unet = load_unet(folder, dtype, digests["unet"])
    return Base(unet, *load_text_encoders(folder, dtype, (digests["te1"], digests["te2"])), *load_tokenizers(folder))


def dataset() -> dict[str, Any]:
    """Four pictures in two buckets, one of them in two entries: an epoch is two batches of three."""
    shapes = [("a", [64, 64], 1), ("a", [64, 64], 1), ("b", [64, 64], 1), ("c", [96, 32], 1), ("d", [96, 32], 2)]
    images = [
        {
            "digest": letter * 32,
            "caption": f"ember, Red, sit, {number}",
            "repeats": repeats,
            "size": [3 * bucket[0], 3 * bucket[1] + 24],
            "resized": [bucket[0] + 4, bucket[1]],
            "bucket": bucket,
            "crop": [1, 0],
        }
        for number, (letter, bucket, repeats) in enumerate(shapes)
    ]
    return {"settings": SETTINGS, "images": images}


def latents() -> dict[str, torch.Tensor]:
    """Smooth latents for `dataset`, of about the scale of SDXL's."""
    found = {}
    for image in dataset()["images"]:
        width, height = image["bucket"]
        for flip in ("", ".flip"):
            seed = torch.Generator().manual_seed(ord(image["digest"][0]) + len(flip))
            coarse = torch.randn(1, 4, height // 16, width // 16, generator=seed) * 6
            fine = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")[0]
            found[f"{image['digest']}.{width}x{height}{flip}"] = fine
    return found


def write_inputs(folder: Path) -> dict[str, Path]:
    """`dataset` and `latents` as the stages before leave them."""
    paths = {"dataset": folder / "dataset.json", "latents": folder / "latents"}
    paths["dataset"].write_text(json.dumps(dataset()))
    tensors = latents().items()
    write_body(
        paths["latents"], [(name, "F32", tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in tensors]
    )
    return paths


def training(
    folder: Path,
    recipe: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    snapshots: tuple[int, ...] = (),
    on_saved: Callable[[str, Path], None] = lambda role, path: None,
) -> tuple[Job, Workspace]:
    """The job of a training, and a workspace in `folder` as the engine would make it; `scratch` outlives it."""
    inputs, components = write_inputs(folder), tiny_digests()
    folders = {name: tiny_folder() for name in components if name != "vae"}
    shutil.rmtree(folder / "staging", ignore_errors=True)
    (folder / "staging").mkdir()
    (folder / "scratch").mkdir(exist_ok=True)
    params = {"recipe": {**RECIPE, **(recipe or {})}, "base": {"prediction_type": "epsilon"}}
    job = Job(
        name="train:ember",
        params=params,
        inputs={},
        outputs=["weights", "log", "facts.json"],
        snapshots=[f"step/{step}" for step in snapshots],
        options=options or {},
    )
    workspace = Workspace(
        staging=folder / "staging",
        scratch=folder / "scratch",
        pieces=folder / "pieces",
        paths={**inputs, **folders},
        digests={**{role: digest_file(path) for role, path in inputs.items()}, **components},
        on_saved=on_saved,
    )
    return job, workspace


def outputs(folder: Path) -> dict[str, bytes]:
    """role -> bytes of all that lies in staging."""
    staging = folder / "staging"
    return {str(path.relative_to(staging)): path.read_bytes() for path in sorted(staging.rglob("*")) if path.is_file()}
