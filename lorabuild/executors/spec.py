"""What a job away from its driver is told: self-contained JSON, no path of the driver's in it. Its format, and its check.

format 1
name, stage, version, run     the job, its stage, and the function that runs it ("module:function")
key, record                   what it is made under; the record's name in the store, another than the key only for a
                              job that is built anew
params, options, outputs, snapshots       as in `lorabuild.stage.Job`; `options` has no paths
inputs        role -> {"digest": what the key says, "how": one of HOW, …}
    blob        a file                              "blob": BLOB
    tensors     a LoRA of which the tensors count   "blob": BLOB
    images      "captions": do they count?          "images": [{"blob", "shown", "subset", "repeats", "settings",
                                                      "caption": null | {"blob", "name"}}]
    component   a part of a base                    "component": "unet", "place": a key of `places`
    vocabulary  the tokens of a single-file base    "place": …
places        {"names": paths to look for below `models`, the longest first; none for what the store has alone,
               "single": is it one file?, "files": relative path -> BLOB, or null: the store has it not}
made_from, metadata           for the record: keys of the inputs' records, metadata of the user's LoRAs by digest
store, cache, models          URL; folder on the node, or null; folders of checkpoints there
gpus, threads                 what it may use; threads of each of its processes
anew                          nothing that was kept is taken up: no state, no pieces
state_seconds                 between two uploads of its state, at least

BLOB          {"digest": xxh3-128, "size": bytes, "sha256"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorabuild.errors import JobError
from lorabuild.hashing import digest_json
from lorabuild.stage import Stage

FORMAT = 1
HOW = ("blob", "tensors", "images", "component", "vocabulary")
STATE_SECONDS = 60.0


def key_of_spec(spec: Mapping[str, Any]) -> str:
    """The key that follows from what the spec says: what is built is recorded under no other."""
    digests = {role: one["digest"] for role, one in spec["inputs"].items()}
    return digest_json([spec["stage"], spec["version"], spec["params"], digests])


def check(spec: Mapping[str, Any], stages: Mapping[str, Stage]) -> None:
    """Raises JobError where this lorabuild would make something else of the job than the one that has sent it."""
    if spec["format"] != FORMAT:
        raise JobError(f"a job of format {spec['format']}, and this lorabuild reads {FORMAT}: install the same on both")
    stage = stages.get(spec["stage"])
    if stage is None or stage.version != spec["version"]:
        here = f"version {stage.version}" if stage else "unknown"
        raise JobError(
            f"stage {spec['stage']} is {here} on this node, and version {spec['version']} where the job comes from: "
            "install the same lorabuild on both"
        )
    if key_of_spec(spec) != spec["key"]:
        raise JobError(f"{spec['name']}: the spec is damaged: it is not of key {spec['key']}")
    if not re.fullmatch(rf"{spec['key']}(/anew/[0-9a-f]+)?", spec["record"]):  # it becomes the name of a folder
        raise JobError(f"{spec['name']}: the spec is damaged: {spec['record']!r} is no record of its key")
