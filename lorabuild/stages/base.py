"""Generate a built-in base: a small SDXL in a diffusers folder, with nothing to download."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorabuild.components import COMPONENTS_FILE, folder_digests
from lorabuild.hashing import canonical_json
from lorabuild.stage import Job, Stage

if TYPE_CHECKING:
    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"text_encoder/{name}" for name in ("config.json", "model.safetensors")),
    *(f"text_encoder_2/{name}" for name in ("config.json", "model.safetensors")),
    *(f"tokenizer/{name}" for name in _TOKENIZER),
    *(f"tokenizer_2/{name}" for name in _TOKENIZER),
    *(f"unet/{name}" for name in ("config.json", _WEIGHTS)),
    *(f"vae/{name}" for name in ("config.json", _WEIGHTS)),
)


def jobs(repository: Repository) -> Iterable[Job]:
    """One for each base that lorabuild makes itself and a project trains on."""
    for name in repository.used_bases:
        settings = repository.bases[name]
        if "builtin" in settings:
            yield Job(
                name=f"base:{name}",
                params={"base": {"builtin": settings["builtin"]}},
                inputs={},
                outputs=[*FILES, COMPONENTS_FILE],
            )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write the base's files, and `components.json`: the digest of each of its parts, by content."""
    from lorabuild.nn.tiny import write_tiny

    progress(0, 1, job.params["base"]["builtin"])
    write_tiny(workspace.staging)
    digests = folder_digests(workspace.staging)
    workspace.output(COMPONENTS_FILE).write_bytes(canonical_json(digests) + b"\n")


STAGE = Stage("base", 1, jobs, run)
