"""Stand-ins for the stages that take long: they write small files of the right kinds, so that thousands of jobs build in minutes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lorabuild.components import COMPONENTS_FILE
from lorabuild.hashing import digest_bytes, digest_json
from lorabuild.stage import is_family
from lorabuild.stages import STAGES
from lorabuild.writing import write_body

IMAGE = {"caption": "a", "repeats": 1, "bucket": [64, 64], "size": [64, 64], "digest": "0"}
# What headers and keys tell of outputs that are no LoRAs.
SAID = {
    "dataset.json": {"settings": {}, "images": [IMAGE]},
    "facts.json": {"loss_before": 1.0, "loss_after": 0.5},
    COMPONENTS_FILE: dict.fromkeys(("vae", "unet", "te1", "te2", "tokenizer1", "tokenizer2"), "0"),
}
LAYER = "lora_unet_output_blocks_1_1_proj_in"  # in OUT01, which the manifests keep


def quick(job, workspace, progress):
    """Every output of the job, with bytes that depend on its params and inputs alone."""
    made_of = _made_of(job, workspace)
    for role in (*job.outputs, *job.snapshots):
        one = f"{role}one" if is_family(role) else role
        _write(workspace.output(one), one, made_of)


def paced(job, workspace, progress):
    """The same outputs, each half-written for STANDIN_SECONDS; a snapshot is handed over as soon as it is whole.

    STANDIN_GATE="train:ember PATH": that job says with a file PATH.reached that it has begun, and waits for a file PATH.
    """
    gated, _, gate = os.environ.get("STANDIN_GATE", "").partition(" ")
    if gated == job.name:
        Path(f"{gate}.reached").touch()
        while not Path(gate).exists():
            time.sleep(0.01)
    made_of, seconds = _made_of(job, workspace), float(os.environ.get("STANDIN_SECONDS", "0"))
    have = job.options.get("have_steps", ())
    for role in (*(role for role in job.snapshots if role not in have), *job.outputs):
        path = workspace.output(role)
        _write(path, role, made_of)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        time.sleep(seconds)
        path.write_bytes(data)
        if role in job.snapshots:
            workspace.saved(role)


def _made_of(job, workspace) -> str:
    return digest_json([job.stage, job.params, sorted(workspace.digests.items())])


def _write(path: Path, role: str, made_of: str) -> None:
    if role == "weights" or "/" in role:
        data = digest_bytes(f"{made_of} {role}".encode()).encode()
        write_body(path, [(f"{LAYER}.lora_{part}.weight", "F16", (4, 4), data) for part in ("down", "up")])
    else:
        path.write_text(json.dumps(SAID.get(role, {}) | {"of": made_of}))


def install(*names: str, run: Callable = quick) -> None:
    """Let the named stages be stand-ins, in this process; workers are told by name what to run."""
    STAGES.update({name: replace(STAGES[name], run=run) for name in names})
