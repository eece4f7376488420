"""Stand-ins for the stages that take long: they write small files of the right kinds, so that thousands of jobs build in minutes."""

from __future__ import annotations

import json
from dataclasses import replace

from lorabuild.hashing import digest_bytes, digest_json
from lorabuild.stages import STAGES
from lorabuild.writing import write_body

IMAGE = {"caption": "a", "repeats": 1, "bucket": [64, 64], "size": [64, 64], "digest": "0"}
# What headers tell of outputs that are no LoRAs.
SAID = {"dataset.json": {"settings": {}, "images": [IMAGE]}, "facts.json": {"loss_before": 1.0, "loss_after": 0.5}}
LAYER = "lora_unet_output_blocks_1_1_proj_in"  # in OUT01, which the manifests keep


def quick(job, workspace, progress):
    """Every output of the job, with bytes that depend on its params and inputs alone."""
    made_of = digest_json([job.stage, job.params, sorted(workspace.digests.items())])
    for role in (*job.outputs, *job.snapshots):
        if role == "weights" or "/" in role:
            data = digest_bytes(f"{made_of} {role}".encode()).encode()
            tensors = [(f"{LAYER}.lora_{part}.weight", "F32", (2, 4), data) for part in ("down", "up")]
            write_body(workspace.output(role), tensors)
        else:
            workspace.output(role).write_text(json.dumps(SAID.get(role, {}) | {"of": made_of}))


def install(*names: str) -> None:
    """Let the named stages be stand-ins, in this process; workers are told by name what to run."""
    STAGES.update({name: replace(STAGES[name], run=quick) for name in names})
