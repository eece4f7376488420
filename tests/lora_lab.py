"""LoRA files made by rule, the weight stages run on them by hand, and what a file adds to a base, by the naive formula."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lorabuild.stage import Job, Stage
from lorabuild.stages.resize import STAGE as RESIZE
from lorabuild.stages.spectrum import STAGE as SPECTRUM
from lorabuild.workspace import Workspace

GOLDENS = Path(__file__).parent / "goldens/resize"


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


def resize(folder: Path, weights: Path, norms: Path, thr: float, save_precision: str = "fp16") -> Done:
    """Spectrum and resize, one after the other."""
    spectrum = run(SPECTRUM, folder / "spectrum", {}, weights=weights, norms=norms).path("spectrum")
    return run(RESIZE, folder / "resize", resize_params(thr, save_precision), spectrum=spectrum)


def resize_params(thr: float, save_precision: str = "fp16") -> dict:
    return {"resize": {"fro_ckpt": 1.0, "thr": thr}, "recipe": {"save_precision": save_precision}}


def write_norms(path: Path, norms: dict[str, float]) -> Path:
    path.write_text(json.dumps({"fro_ckpt": norms}))
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


def write_lora(path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = torch.float16) -> Path:
    """All tensors in `dtype`, or each in its own if None."""
    save_file({name: (one.to(dtype) if dtype else one).contiguous() for name, one in tensors.items()}, path)
    return path


def read(path: Path) -> dict[str, torch.Tensor]:
    """All tensors, by the library."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary


def ranks(path: Path) -> dict[str, int]:
    """Layer -> its rank."""
    suffix = ".lora_down.weight"
    return {name.removesuffix(suffix): one.shape[0] for name, one in read(path).items() if name.endswith(suffix)}


def deltas(path: Path) -> dict[str, torch.Tensor]:
    """Layer -> alpha / rank · up @ down [O, I·k] in float64: what a loader adds to the base's weight."""
    tensors = {name: one.double() for name, one in read(path).items()}
    found = {}
    for name, rank in ranks(path).items():
        up, down = tensors[f"{name}.lora_up.weight"].flatten(1), tensors[f"{name}.lora_down.weight"].flatten(1)
        found[name] = up @ down * (tensors[f"{name}.alpha"] / rank if f"{name}.alpha" in tensors else 1)
    return found


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one - other‖ / ‖other‖, in Frobenius' norm."""
    return ((one - other).norm() / other.norm()).item()
