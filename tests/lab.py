"""A small data set on which the stages dataset and latents are run by hand, without an engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from lorabuild.hashing import digest_file
from lorabuild.header import read_header
from lorabuild.inputs import Resolver
from lorabuild.stage import Job
from lorabuild.stages.dataset import STAGE as DATASET
from lorabuild.stages.latents import STAGE as LATENTS
from lorabuild.workspace import Workspace

SETTINGS: dict[str, Any] = {
    "resolution": [64, 64],
    "enable_bucket": True,
    "bucket_no_upscale": False,
    "bucket_reso_steps": 32,
    "min_bucket_reso": 32,
    "max_bucket_reso": 128,
    "flip_aug": True,
    "caption_extension": ".txt",
    "caption_separator": ",",
    "shuffle_caption": True,
    "keep_tokens": 1,
    "subset": [{"image_dir": "images", "num_repeats": 2}],
}
SIZES = {"1.png": (64, 64), "2.png": (50, 100), "3.png": (200, 90)}


class Lab:
    """A project's images in a folder, a VAE, and the two stages run on them by hand."""

    def __init__(self, root: Path, vae: Path):
        self.root, self.vae = root, vae
        self.project = root / "projects/ember"
        self.settings = json.loads(json.dumps(SETTINGS))
        for number, (name, size) in enumerate(SIZES.items(), 1):
            self.picture(name, number, size)
            self.write(f"images/{number}.txt", f"ember, {number}\n".encode())

    def write(self, name: str, data: bytes) -> Path:
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def picture(self, name: str, seed: int, size: tuple[int, int], **options: Any) -> Path:
        path = self.write(f"images/{name}", b"")
        tiles = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(tiles).resize(size, Image.Resampling.BILINEAR).save(path, **options)
        return path

    def job(self, stage) -> Job:
        settings = {"project": {"base": "tiny", "source": None}, "dataset": self.settings}
        project = SimpleNamespace(name="ember", folder=self.project, settings=settings)
        (job,) = stage.jobs(SimpleNamespace(root=self.root, projects={"ember": project}))
        return job

    def prepare(self, stage) -> tuple[Job, Workspace]:
        """The job, and its workspace as the engine would make it."""
        job = self.job(stage)
        resolver = Resolver(
            state=SimpleNamespace(digest=digest_file),
            artifact=lambda job, role: (digest_file(self.output(role)), self.output(role)),
            component=lambda base, name: (digest_file(next((self.vae / name).glob("*.safetensors"))), self.vae),
        )
        inputs = resolver.resolve(job)
        workspace = Workspace(
            staging=self.root / "staging",
            scratch=self.root / "scratch",
            pieces=self.root / "pieces",
            paths={role: found.path for role, found in inputs.items() if found.path},
            digests={role: found.digest for role, found in inputs.items()},
            images={role: found.images for role, found in inputs.items()},
        )
        return replace(job, inputs={}), workspace

    def run(self, stage) -> dict[str, Any]:
        """Run a stage; returns its notes for the run log."""
        job, workspace = self.prepare(stage)
        stage.run(job, workspace, lambda done, total, text: None)
        return workspace.notes

    def both(self) -> dict[str, Any]:
        self.run(DATASET)
        return self.run(LATENTS)

    def output(self, role: str) -> Path:
        return self.root / "staging" / role

    def json(self, role: str) -> Any:
        return json.loads(self.output(role).read_bytes())

    def latents(self) -> dict[str, np.ndarray]:
        data, header = self.output("latents").read_bytes(), read_header(self.output("latents"))
        return {
            name: np.frombuffer(data[info.start : info.stop], np.float32).reshape(info.shape)
            for name, info in header.tensors.items()
        }


def write_vae(folder: Path, seed: int, **config: Any) -> Path:
    """A VAE of SDXL's shape, 8 pixels a latent, with few channels and random weights."""
    torch.manual_seed(seed)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    small = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "layers_per_block": 1}
    AutoencoderKL(**{**levels, **small, **config}).save_pretrained(folder / "vae")
    return folder
