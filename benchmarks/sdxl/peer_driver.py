"""In the peer's process and environment: run its trainer with a clock at its updates. `python peer_driver.py JOB`.

sd-scripts calls its trainer's `sample_images` before the first update and after each: the clock sits there, and draws
nothing. For tiny widths what it has as constants is replaced; the training loop, data set, network module and optimizer
are its own, untouched.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "lycoris_lora")
GB = 1e9


class Enough(Exception):
    """All updates are timed: what the peer would save at the end is not waited for."""


def main(path: Path) -> None:
    job = json.loads(path.read_text())
    # This script's own folder is the first place that is looked in, and no part of the peer.
    sys.path[0] = job["checkout"]
    import torch

    gpu = torch.cuda.is_available()
    if job["limit_gb"] and gpu:
        torch.cuda.set_per_process_memory_fraction(min(1.0, job["limit_gb"] * GB / torch.cuda.mem_get_info()[1]))
    if job["widths"]:
        shrink(job["widths"])
    marks, memory = run(job["arguments"], job["updates"], gpu)
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    Path(job["result"]).write_text(json.dumps({"marks": marks, "memory": memory, "versions": versions}))


def run(words: list[str], updates: int, gpu: bool) -> tuple[list[float], dict[str, float]]:
    """Moments before the first update and after each, in seconds, and peaks of memory in GB since the first of them."""
    import sdxl_train_network
    import torch
    from library import train_util

    marks: list[float] = []
    memory: dict[str, float] = {}

    class Clocked(sdxl_train_network.SdxlNetworkTrainer):
        def sample_images(self, accelerator: Any, args: Any, epoch: Any, global_step: int, *others: Any) -> None:
            if global_step + 1 == len(marks):  # again, at the end of an epoch
                return
            if gpu:
                torch.cuda.synchronize()
                if not marks:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
            marks.append(time.perf_counter() if gpu else time.process_time())
            if global_step == updates:
                memory.update(peaks(gpu))
                raise Enough

    parser = sdxl_train_network.setup_parser()
    args = parser.parse_args(words)
    train_util.verify_command_line_training_args(args)
    try:
        Clocked().train(train_util.read_config_from_file(args, parser))
    except Enough:
        pass
    return marks, memory


def peaks(gpu: bool) -> dict[str, float]:
    import torch

    if gpu:
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"allocated": allocated / GB, "reserved": reserved / GB}
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB}


def shrink(widths: dict[str, Any]) -> None:
    """Set the peer's constants, and the numbers that stand in its code, to these widths; depths stay."""
    from library import model_util, sdxl_model_util, sdxl_original_unet

    text = widths["te1"] + widths["te2"]
    sdxl_original_unet.MODEL_CHANNELS = widths["unet"]
    sdxl_original_unet.TIME_EMBED_DIM = 4 * widths["unet"]
    sdxl_original_unet.ADM_IN_CHANNELS = widths["te2"] + 6 * 256
    sdxl_original_unet.CONTEXT_DIM = text
    model_util.VAE_PARAMS_CH = widths["vae"]

    class Narrow(sdxl_original_unet.Transformer2DModel):
        def __init__(self, **options: Any):
            super().__init__(**options | {"cross_attention_dim": text})

    # The adapter looks for a class by this name.
    Narrow.__name__ = Narrow.__qualname__ = "Transformer2DModel"
    sdxl_original_unet.Transformer2DModel = Narrow
    full = sdxl_model_util.CLIPTextConfig

    def config(**options: Any) -> Any:
        number = 0 if options["hidden_size"] == 768 else 1
        width = widths["te1"], widths["te2"]
        narrow = {
            "hidden_size": width[number],
            "intermediate_size": 4 * width[number],
            "projection_dim": width[number],
            "num_attention_heads": widths["heads"][number],
        }
        return full(**options | narrow)

    sdxl_model_util.CLIPTextConfig = config


if __name__ == "__main__":
    main(Path(sys.argv[1]))
