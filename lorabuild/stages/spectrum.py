"""Turn a trained LoRA into its singular basis once; after it, every resize is a slice and a scale."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.header import FileRange, Tensor, TensorInfo, read_header, write_body
from lorabuild.stage import Artifact, Job, Stage
from lorabuild.tensors import FLOATS, read_tensor

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace

UP, DOWN, MID, ALPHA = ".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".alpha"
PARTS = ("U", "S", "Vh")
NORM = ".fro_ckpt"
FILE_ALPHA = "alpha"
SHOWN = 3  # names in a warning


@dataclass(frozen=True)
class Layer:
    """A low-rank layer of a LoRA file: alpha / R · up @ down. up [O, R, *1], down [R, I, *k]."""

    name: str
    up: TensorInfo
    down: TensorInfo
    alpha: float

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of U [O, P], S [P], Vh [P, I, *k]."""
        rank = min(*self.up.shape[:2], prod(self.down.shape[1:]))
        return (self.up.shape[0], rank), (rank,), (rank, *self.down.shape[1:])


def jobs(repository: Repository) -> Iterable[Job]:
    """One a project; one of its own for a variant that resizes another step than its project."""
    for name, project in repository.projects.items():
        for target, settings in targets(name, project.settings, project.variants):
            if settings["resize"] and spectrum_of(target, settings, project.settings) == target:
                step, base = settings["resize"]["step"], settings["project"]["base"]
                role = "weights" if step == "last" else f"step/{step}"
                inputs = {"weights": Artifact(f"train:{name}", role), "norms": Artifact(f"norms:{base}", "norms.json")}
                yield Job(name=f"spectrum:{target}", params={}, inputs=inputs, outputs=["spectrum"])


def targets(
    name: str, settings: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    """What is made of a project, with its complete settings: itself, then `project@variant` for each variant."""
    return [(name, settings), *((f"{name}@{variant}", changed) for variant, changed in variants.items())]


def spectrum_of(target: str, settings: Mapping[str, Any], project: Mapping[str, Any]) -> str:
    """Whose spectrum `target` resizes: its project's, or its own if the project has none or one of another step."""
    shared = project["resize"] and project["resize"]["step"] == settings["resize"]["step"]
    return target.partition("@")[0] if shared else target


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `spectrum`. Of each layer that the base has too, in float32:

    `<name>.U` [O, P], `<name>.S` [P] descending, `<name>.Vh` [P, I, *k], where U·diag(S)·Vh is what the layer adds to
    the base, alpha / R included, and P = min(R, O, I·∏k); `<name>.fro_ckpt` [], the norm of the base's layer. `alpha` []
    is that of the file. All other tensors (of layers that the base lacks, norms, DoRA scales) travel under their own
    names as they are. One layer at a time is in memory. Raises JobError for weights that are not finite.
    """
    path = workspace.path("weights")
    tensors = read_header(path).tensors
    norms = json.loads(workspace.path("norms").read_bytes())["fro_ckpt"]
    lowrank = list(_lowrank_layers(path, tensors))
    layers = [layer for layer in lowrank if layer.name in norms]
    taken = {layer.name + suffix for layer in layers for suffix in (UP, DOWN, ALPHA)}
    passed = {name: info for name, info in tensors.items() if name not in taken}

    factors = _factors(path, len(layers), progress)
    body: list[Tensor] = [_scalar(FILE_ALPHA, _common_alpha(layers)), *verbatim(path, passed)]
    for layer in layers:
        body += [*_parts(layer, factors), _scalar(layer.name + NORM, norms[layer.name])]
    write_body(workspace.output("spectrum"), body)

    workspace.note(decomposed=len(layers), passed=len(passed))
    if unknown := [layer.name for layer in lowrank if layer.name not in norms]:
        names = ", ".join(unknown[:SHOWN]) + (", …" if len(unknown) > SHOWN else "")
        workspace.warn(f"{len(unknown)} layers are not in the base and stay as they are: {names}")


def verbatim(path: Path, tensors: Mapping[str, TensorInfo]) -> Iterator[Tensor]:
    """Tensors of the file at `path`, to be written as they are."""
    for name, info in tensors.items():
        yield name, info.dtype, info.shape, FileRange(path, info.start, info.stop)


def _lowrank_layers(path: Path, tensors: Mapping[str, TensorInfo]) -> Iterator[Layer]:
    """The layers of the form up @ down, in name order. What is of another form (Tucker's mid, LoHa, LoKr) is not one."""
    for name in sorted(key.removesuffix(UP) for key in tensors if key.endswith(UP)):
        up, down, alpha = tensors[name + UP], tensors.get(name + DOWN), tensors.get(name + ALPHA)
        if down is None or name + MID in tensors or not _fit(up, down):
            continue
        if alpha is not None and (alpha.dtype not in FLOATS or prod(alpha.shape) != 1):
            continue
        # Without an alpha, loaders take up @ down as it is.
        yield Layer(name, up, down, read_tensor(path, name + ALPHA, alpha).item() if alpha else float(down.shape[0]))


def _fit(up: TensorInfo, down: TensorInfo) -> bool:
    """Whether up [O, R, *1] @ down [R, I, *k] can be multiplied, and is not empty."""
    return (
        up.dtype in FLOATS
        and down.dtype in FLOATS
        and min(len(up.shape), len(down.shape)) >= 2
        and up.shape[1] == down.shape[0]
        and prod(up.shape[2:]) == 1
        and prod(up.shape) * prod(down.shape) > 0
    )


def _common_alpha(layers: Iterable[Layer]) -> float:
    """The alpha that most layers have, the least of several; 1 if none is positive. We train with one for all."""
    counts = Counter(layer.alpha for layer in layers if layer.alpha > 0)
    return min(counts, key=lambda alpha: (-counts[alpha], alpha), default=1.0)


def _factors(path: Path, total: int, progress: Progress) -> Callable[[Layer], tuple[np.ndarray, ...]]:
    """A function that decomposes a layer, and remembers the last: its three parts are neighbours in name order."""
    done = 0

    @lru_cache(maxsize=1)
    def factors(layer: Layer) -> tuple[np.ndarray, ...]:
        from lorabuild.nn.decompose import decompose

        nonlocal done
        progress(done, total, layer.name)
        done += 1
        up = read_tensor(path, layer.name + UP, layer.up, "float64")
        down = read_tensor(path, layer.name + DOWN, layer.down, "float64")
        return decompose(up, down, layer.alpha / len(down))

    return factors


def _parts(layer: Layer, factors: Callable[[Layer], tuple[np.ndarray, ...]]) -> Iterator[Tensor]:
    def part(index: int) -> np.ndarray:
        return factors(layer)[index].astype("<f4", copy=False)

    for index, (name, shape) in enumerate(zip(PARTS, layer.shapes(), strict=True)):
        yield f"{layer.name}.{name}", "F32", shape, partial(part, index)


def _scalar(name: str, value: float) -> Tensor:
    return name, "F32", (), struct.pack("<f", value)


STAGE = Stage("spectrum", 1, jobs, run)
