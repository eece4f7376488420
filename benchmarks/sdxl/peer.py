"""Run sd-scripts' own training of the same recipe, weights and pictures in a process of its own, and time it."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdxl.inputs import PROJECT, TRIGGER, Prepared
from sdxl.models import Widths

# Keys that the peer takes by the same names; of what it calls otherwise, see `_special`.
SAME = (
    "network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "multires_noise_iterations", "multires_noise_discount",
    "noise_offset", "min_snr_gamma", "mixed_precision", "save_precision", "seed",
)  # fmt: skip
SAME_OF_DATA = (
    "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "caption_extension", "caption_separator", "keep_tokens",
)  # fmt: skip
FLAGS = ("enable_bucket", "bucket_no_upscale", "flip_aug", "shuffle_caption")
TOKENIZERS = {"tokenizer": "openai_clip-vit-large-patch14", "tokenizer_2": "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k"}
# Its loop wants an optimizer's class. ClybW is in none of its releases: it gets ours, which is the faster for it.
OPTIMIZERS = {"ClybW": "lorabuild.nn.clybw.ClybW", "LodeW": "lorabuild.nn.clybw.LodeW"}
DRIVER = Path(__file__).with_name("peer_driver.py")
LAST_WORDS = 30  # lines of a peer that failed


@dataclass(frozen=True)
class Peer:
    """A checkout of sd-scripts, and what it is run with; `limit_gb` is its GPU's allocator's."""

    checkout: Path
    python: str
    threads: int
    limit_gb: float | None = None


@dataclass(frozen=True)
class Timed:
    """As `Measured` of ours. `versions` are those of the libraries in the peer's environment."""

    images: int
    update_s: float
    first_s: float
    updates: list[float] = field(repr=False)
    memory: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def images_a_second(self) -> float:
        return self.images / self.update_s


class Failed(Exception):
    """The peer ended badly; its last words."""


def measure_peer(
    peer: Peer, work: Path, checkpoint: Path, prepared: Prepared, widths: Widths | None, warm_up: int, updates: int
) -> Timed:
    """`work` holds `tokenizer` and `tokenizer_2`, and is written to. `widths`: None for SDXL's own. Raises Failed."""
    for ours, theirs in TOKENIZERS.items():
        shutil.copytree(work / ours, work / "peer-tokenizers" / theirs, dirs_exist_ok=True)
    job = {
        "checkout": str(peer.checkout.resolve()),
        "arguments": arguments(prepared, checkpoint, work, warm_up + updates),
        "widths": asdict(widths) if widths else None,
        "updates": warm_up + updates,
        "limit_gb": peer.limit_gb,
        "result": str(work / "peer.json"),
    }
    (work / "peer-job.json").write_text(json.dumps(job))
    # Ours for the optimizer; nothing of it comes before the peer's own packages.
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    environment["OMP_NUM_THREADS"] = str(peer.threads)
    command = [peer.python, str(DRIVER), str(work / "peer-job.json")]
    done = subprocess.run(command, cwd=peer.checkout, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode or not (work / "peer.json").exists():
        words = "\n".join([*done.stdout.splitlines(), *done.stderr.splitlines()][-LAST_WORDS:])
        raise Failed(f"the peer ended with {done.returncode}:\n{words}")
    said = json.loads((work / "peer.json").read_text())
    seconds = [b - a for a, b in zip(said["marks"][warm_up:], said["marks"][warm_up + 1 :], strict=False)]
    images = prepared.recipe["train_batch_size"] * prepared.recipe["gradient_accumulation_steps"]
    first = said["marks"][1] - said["marks"][0]
    return Timed(images, statistics.median(seconds), first, seconds, said["memory"], said["versions"])


def arguments(prepared: Prepared, checkpoint: Path, work: Path, updates: int) -> list[str]:
    """sd-scripts' command line for the recipe. What costs it time and changes nothing is switched on in its favour."""
    recipe, data = prepared.recipe, prepared.dataset["settings"]
    words = [f"--{key}={recipe[key]}" for key in SAME if recipe.get(key) is not None]
    words += [f"--{key}={data[key]}" for key in SAME_OF_DATA if data.get(key) is not None]
    words += [f"--{key}" for key in FLAGS if data.get(key)]
    words += [*_special(recipe, prepared.execution, updates)]
    return [
        *words,
        f"--pretrained_model_name_or_path={checkpoint}",
        f"--train_data_dir={prepared.pictures}",
        f"--resolution={','.join(map(str, _resolution(prepared)))}",
        f"--output_dir={work / 'peer-output'}",
        f"--output_name={PROJECT}-{TRIGGER}",
        f"--tokenizer_cache_dir={work / 'peer-tokenizers'}",
        "--cache_latents",
        "--sdpa",
        "--persistent_data_loader_workers",
    ]


def _special(recipe: Mapping[str, Any], execution: Mapping[str, Any], updates: int) -> Iterator[str]:
    optimizer = recipe["optimizer_type"]
    yield f"--optimizer_type={OPTIMIZERS.get(optimizer, optimizer)}"
    yield f"--max_train_steps={updates}"
    yield "--network_module=lycoris.kohya"
    yield from _pairs("network_args", recipe.get("network_args"), str)
    yield from _pairs("optimizer_args", recipe.get("optimizer_args"), repr)  # which it reads as Python's literals
    yield from _pairs("lr_scheduler_args", recipe.get("lr_scheduler_args"), repr)
    if execution.get("gradient_checkpointing"):
        yield "--gradient_checkpointing"


def _pairs(option: str, values: Mapping[str, Any] | None, written: Callable[[Any], str]) -> Iterator[str]:
    if values:
        yield f"--{option}"
        yield from (f"{key}={written(value)}" for key, value in values.items())


def _resolution(prepared: Prepared) -> list[int]:
    return prepared.dataset["images"][0]["bucket"]
