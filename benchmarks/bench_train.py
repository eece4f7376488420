"""Time a training step on the built-in base: `python benchmarks/bench_train.py` in a repository whose build is fresh.

The reference is the same run's own forward and backward passes: what is left of an update is ours (data, noise, losses,
clipping, optimizer, logging). Seconds are those of the processor, so that neighbours on the machine count little. One
thread by default, as products this small gain nothing by more. Memory is the process's peak, against its peak before
the first update.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from lorabuild.lora.adapter_shape import Shape, trained_parts
from lorabuild.nn.adapter import adapted
from lorabuild.nn.base import Base, load_text_encoders, load_tokenizers, load_unet
from lorabuild.nn.batches import Data
from lorabuild.nn.latents import open_latents
from lorabuild.nn.trainer import Training, _Loop
from lorabuild.session import opened
from lorabuild.stage import Artifact
from lorabuild.training.order import micro_batches

MB = 1e6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--project", default="ember")
    arguments.add_argument("--updates", type=int, default=10, help="timed, after one that is not")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--optimizer", nargs="*", default=["ClybW", "AdamW"])
    arguments.add_argument("--accumulation", type=int, nargs="*", default=[2, 6], help="tiny.toml's, the guides'")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    recipe, dataset, latents, folder = inputs(options.project)
    rows = {}
    for name, accumulation in product(options.optimizer, options.accumulation):
        own = name.casefold() == recipe["optimizer_type"].casefold()
        chosen = recipe if own else {**recipe, "optimizer_type": name, "optimizer_args": {}}
        chosen = {**chosen, "gradient_accumulation_steps": accumulation}
        rows[f"{name}, accumulation {accumulation}"] = measure(chosen, dataset, latents, folder, options.updates)
    print(json.dumps(rows, indent=1))


def inputs(project: str) -> tuple[dict[str, Any], dict[str, Any], Path, Path]:
    """Recipe, data set, latents and base of a project, from the store."""
    with opened(Path.cwd(), writing=False, building=False) as engine:
        job = engine.jobs[f"train:{project}"]
        blobs = {}
        for role in ("dataset", "latents"):
            item = job.inputs[role]
            assert isinstance(item, Artifact)
            blobs[role] = engine.store.blob(engine.assess(item.job).outputs[item.role].digest)
        folder = engine.root / ".lorabuild/base" / engine.projects[project]["base"]
    return dict(job.params["recipe"]), json.loads(blobs["dataset"].read_bytes()), blobs["latents"], folder


def measure(
    recipe: dict[str, Any], dataset: dict[str, Any], latents: Path, folder: Path, updates: int
) -> dict[str, float]:
    """Medians over the updates."""
    base = Base(load_unet(folder, torch.float32), *load_text_encoders(folder, torch.float32), *load_tokenizers(folder))
    data = Data(dataset, open_latents(latents, "cpu"))
    dealt = micro_batches(data.images, recipe["train_batch_size"], recipe["seed"])
    accumulate = recipe["gradient_accumulation_steps"]
    wholes, models = [], []
    with adapted(base, Shape.of(recipe), recipe["seed"], trained_parts(recipe)) as adapter, watched(base) as seconds:
        loop = _Loop(Training(base, adapter, data, recipe))
        before = peak_mb()
        for _ in range(updates + 1):
            seconds.clear()
            start = time.process_time()
            loop.update(list(islice(dealt, accumulate)))
            wholes.append(time.process_time() - start)
            models.append(sum(seconds))
    outside = [(whole - model) / whole for whole, model in zip(wholes[1:], models[1:], strict=True)]
    micro = statistics.median(wholes[1:]) / accumulate
    return {
        "updates a second": round(1 / statistics.median(wholes[1:]), 3),
        "seconds a micro-batch": round(micro, 3),
        "outside the model, part of a step": round(statistics.median(outside), 4),
        "peak memory, MB": round(peak_mb()),
        "peak before the first update, MB": round(before),
    }


@contextmanager
def watched(base: Base) -> Iterator[list[float]]:
    """The seconds of each forward of the base's networks, with their adapters, and of each backward."""
    seconds: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                seconds.append(time.process_time() - start)

        return run

    with ExitStack() as stack:
        for network in (base.unet, base.te1, base.te2):
            stack.enter_context(patch.object(network, "forward", timed(network.forward)))
        stack.enter_context(patch.object(torch.Tensor, "backward", timed(backward)))
        yield seconds


def backward(loss: torch.Tensor, really: Callable[..., None] = torch.Tensor.backward) -> None:
    """The backward pass with its end, the release of the graph, which otherwise comes when the loss is let go of."""
    really(loss)
    loss.detach_()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


if __name__ == "__main__":
    main()
