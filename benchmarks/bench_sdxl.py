"""Time a training of SDXL at its full widths on a GPU, with random weights: `python benchmarks/bench_sdxl.py`.

Recipe, data set, latents and training are our own code, from recipes/*.toml to the trainer; only the weights are not read
from a file. With `--peer CHECKOUT` sd-scripts trains the same recipe on the same weights and pictures afterwards, on the
same device, in a process of its own. `--tiny` does all of it at tiny widths, in seconds and on a CPU, too.

Utilisation is products of the model, each counted once, over the time of whole updates and what the device does on a
large product in the same run. Seconds of a CPU are its processor's, so that neighbours count little. Outside forward and backward is the rest of an update on the device's own clock. The whole
recipe is its first update, with the loss before and compilation, and so many of the median ones; reading a base is not
in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from sdxl.checkpoint import write_checkpoint
from sdxl.counting import peak_flops, step_flops
from sdxl.inputs import IMAGES, Prepared, prepare, repository, write_tokenizers
from sdxl.models import FULL, TINY, Widths, parameter_bytes, random_base, random_vae
from sdxl.ours import GB, measure, peak_memory, reset_memory
from sdxl.peer import Failed, Peer, Timed, measure_peer
from sdxl.report import TINY_SAID, report, table

from lorabuild.errors import UserError
from lorabuild.lora.adapter_shape import trained_parts
from lorabuild.nn import warm
from lorabuild.nn.base import DTYPES
from lorabuild.nn.vae import encode, load_vae

TINY_RECIPES = ("schnell", "tiny")  # as the example projects have it
TINY_IMAGES = 8  # two updates of tiny.toml
CHECKPOINT = "sdxl.safetensors"  # of random weights, for the peer
COMPILE = "torch_compile"  # the key of [recipe] that says whether blocks are compiled


def main(words: Sequence[str] | None = None) -> None:
    options = parsed(words)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        sys.exit("bench_sdxl: there is no GPU: SDXL's widths take hours on a CPU; `--tiny` runs anywhere")
    if options.limit_gb:
        if device == "cpu":
            sys.exit("bench_sdxl: --limit-gb: a limit of the GPU's allocator, and there is no GPU")
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.limit_gb * GB / torch.cuda.mem_get_info()[1]))
    with tempfile.TemporaryDirectory(prefix="lorabuild-bench-", dir=options.work) as folder:
        try:
            with redirect_stdout(sys.stderr):  # what goes to a job's log
                found = run(options, device, Path(folder))
        except (UserError, Failed) as error:
            sys.exit(f"bench_sdxl: {error}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--recipe",
        nargs="+",
        metavar="NAME",
        help="of recipes/, one over the other (schnell; with --tiny tiny over it)",
    )
    add("--updates", type=int, default=5, metavar="N", help="timed (%(default)s)")
    add("--warm-up", type=int, default=2, metavar="N", help="updates before, which are not, at least 1 (%(default)s)")
    add("--batch", type=int, metavar="N", help="in the place of the recipe's train_batch_size")
    add("--accumulation", type=int, metavar="N", help="in the place of its gradient_accumulation_steps")
    add("--resolution", type=int, metavar="PIXELS", help="side of the pictures, in the place of its own")
    add("--optimizer", metavar="NAME", help="in the place of its optimizer_type")
    add("--no-compile", action="store_true", help="blocks as they are, not compiled")
    add("--images", type=int, metavar="N", help="at least; they fill whole batches (96; with --tiny 8)")
    add("--limit-gb", type=float, metavar="GB", help="what the GPU's allocator may take, for each side by itself")
    add("--tiny", action="store_true", help="SDXL's depth at tiny widths, anywhere")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of a CPU (%(default)s)")
    add("--peer", type=Path, metavar="DIR", help="a checkout of kohya-ss/sd-scripts, to train the same with")
    add("--peer-python", default=sys.executable, metavar="FILE", help="Python with what it needs (this one)")
    add(
        "--work", type=Path, metavar="DIR", help="where files go in the meantime, with --peer 7 GB (the system's place)"
    )
    add("--json", type=Path, metavar="FILE", help="all figures; the table goes to the terminal in any case")
    options = parser.parse_args(words)
    if options.warm_up < 1 or options.updates < 1:
        parser.error("--warm-up and --updates: at least 1")
    return options


def run(options: argparse.Namespace, device: str, work: Path) -> dict[str, Any]:
    """All figures. Nothing of ours is left on the device when the peer begins."""
    widths = TINY if options.tiny else FULL
    recipes = options.recipe or (TINY_RECIPES if options.tiny else ("schnell",))
    images = options.images or (TINY_IMAGES if options.tiny else IMAGES)
    found = repository(work / "repository", recipes, *overrides(options), images)
    write_tokenizers(work)
    side = found.projects["bench"].settings["dataset"]["resolution"][0]
    prepared, latents_memory = latents(found, work, widths, side, device)
    recipe = prepared.recipe
    dtype = DTYPES[recipe["mixed_precision"]]
    base = random_base(widths, dtype, device)
    if options.peer:
        write_checkpoint(work / CHECKPOINT, base, random_vae(widths, "cpu"), dtype)
    weights = parameter_bytes(base.unet, base.te1, base.te2)
    for component in ("unet", "te1", "te2"):
        warm.keep(component, component, dtype, getattr(base, component))
    peak = peak_flops(device, dtype)
    ours = measure(base, found, prepared, work, device, options.warm_up, options.updates)
    del base
    warm.forget()
    reset_memory(device)
    peer = compared(options, work, prepared) if options.peer else None
    counting = "cpu" if options.tiny else "meta"
    flops = step_flops(widths, recipe, trained_parts(recipe), recipe["train_batch_size"], side, counting)
    settings = (
        f"{TINY_SAID if options.tiny else 'SDXL'}, recipe {' + '.join(recipes)}, {side} px, "
        f"{recipe['train_batch_size']} × {recipe['gradient_accumulation_steps']} images, {recipe['optimizer_type']}, "
        f"mixed_precision {recipe['mixed_precision']}, {options.updates} updates after {options.warm_up}"
    )
    return report(ours, prepared, flops, peak, weights, latents_memory, peer, settings)


def overrides(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of [recipe] and of [dataset]."""
    keys = {
        "train_batch_size": options.batch,
        "gradient_accumulation_steps": options.accumulation,
        "optimizer_type": options.optimizer,
        COMPILE: False if options.no_compile else None,
    }
    sides = {"resolution": [options.resolution] * 2} if options.resolution else {}
    return {key: value for key, value in keys.items() if value is not None}, sides


def latents(found: Any, work: Path, widths: Widths, side: int, device: str) -> tuple[Prepared, dict[str, float]]:
    """What training reads, and the peak of memory meanwhile. The VAE is warm, as it is behind a project's first picture."""
    warm.keep("vae", "vae", torch.float32, random_vae(widths, "cpu"))
    encode(load_vae(work, "vae"), torch.zeros(1, 3, side, side))
    reset_memory(device)
    prepared = prepare(found, work, device)
    memory = peak_memory(device)
    warm.forget()
    return prepared, memory


def compared(options: argparse.Namespace, work: Path, prepared: Prepared) -> Timed:
    peer = Peer(options.peer, options.peer_python, options.threads, options.limit_gb)
    widths = TINY if options.tiny else None
    return measure_peer(peer, work, work / CHECKPOINT, prepared, widths, options.warm_up, options.updates)


if __name__ == "__main__":
    main()
