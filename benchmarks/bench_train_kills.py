"""Kill one training at random moments until it is done: `python benchmarks/bench_train_kills.py --kills 10`.

A real training on the built-in base, with all that a state must hold: accumulation over the ends of epochs, phases, ClybW,
shuffled and dropped captions and tags, dropout in the adapter. SIGKILL hits driver and worker, the driver, or the worker.
Exit code 1 if the final files differ by a bit from those of an undisturbed build.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from killing import HERE, WHO, kill, start

TARGET = "train:ember"
MANIFEST = """\
[project]
base = "tiny"
trigger = "ember"

[dataset]
resolution = [64, 64]
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 32
flip_aug = true
shuffle_caption = true
keep_tokens = 1
caption_dropout_rate = 0.2
caption_tag_dropout_rate = 0.2
[[dataset.subset]]
image_dir = "images"

[recipe]
network_dim = 4
network_alpha = 2
network_args = {{ conv_dim = 2, conv_alpha = 2, rank_dropout = 0.1, module_dropout = 0.1 }}
network_dropout = 0.1
optimizer_type = "ClybW"
unet_lr = 1e-3
text_encoder_lr = 5e-4
train_batch_size = 2
gradient_accumulation_steps = 3
multires_noise_iterations = 4
scale_weight_norms = 1.0
save_every_n_epochs = 6
seed = 11
[[recipe.phases]]
max_train_steps = {first}
lr_scheduler = "linear"
[[recipe.phases]]
max_train_steps = {second}
lr_scheduler = "cosine"
"""
PHASES = (10, 14)  # updates
LEFT = 4  # updates that are left to the build that runs to its end
AN_UPDATE_SECONDS = 2  # about, on two cores
PATIENCE_SECONDS = 300  # for a build to come to its training


@dataclass
class Tally:
    """What the kills came to."""

    kills: int = 0
    at: list[int] = field(default_factory=list)  # the updates that were saved when it was killed
    resumed: list[int] = field(default_factory=list)  # the update that the last build went on from
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        found = "; ".join(self.problems) or "the final files are those of an undisturbed build"
        return f"{self.kills} kills, after updates {self.at}: {found}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorabuild-train-kills-") as folder:
        tally = kill_training(Path(folder), options.kills, options.seed)
    print(f"{tally} (seed {options.seed})")
    sys.exit(bool(tally.problems))


def kill_training(folder: Path, kills: int, seed: int, phases: tuple[int, int] = PHASES) -> Tally:
    """Kill builds of one repository, each some moments after its training went on, and compare with another's end."""
    from world import World

    chance, tally = random.Random(seed), Tally()
    straight = _made(World(folder / "straight"), phases)
    _end(straight, tally)
    killed = _made(World(folder / "killed"), phases)
    for update in sorted(chance.sample(range(sum(phases) - LEFT), kills)):
        build = start(killed.root, TARGET)
        if not _comes_to(update, killed.root, build):
            break  # it was done before it could be killed
        time.sleep(chance.random() * AN_UPDATE_SECONDS)
        if build.poll() is None:
            tally.kills += 1
            tally.at.append(_state(killed.root))
            kill(build, WHO[tally.kills % len(WHO)])
        build.communicate()
    _end(killed, tally)
    mine, theirs = killed.built_files(), straight.built_files()
    tally.problems += [f"{name} differs" for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    return tally


def _made(world, phases: tuple[int, int]):
    first, second = phases
    world.write("projects/ember/lora.toml", MANIFEST.format(first=first, second=second))
    for number, size in enumerate([(64, 64), (64, 64), (64, 96), (96, 64)], 1):
        world.picture(f"projects/ember/images/{number}.png", number, size)
        world.write(f"projects/ember/images/{number}.txt", f"ember, red, sit, by a tree, {number}")
    return world


def _end(world, tally: Tally) -> None:
    result = world.doit(TARGET)
    tally.problems += [f"exit code {result.code}: {result.out}{result.err}"] * bool(result.code)
    tally.resumed += [event["resumed_at"] for event in result.events if "resumed_at" in event]


def _comes_to(update: int, root: Path, build: subprocess.Popen) -> bool:
    """Wait until this build has saved a state of its own, of `update` or later. False if the build ends first."""
    before = _state(root)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (state := _state(root)) in (before, -1) or state < update:
        if build.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise RuntimeError("no state was saved")
        time.sleep(0.02)
    return True


def _state(root: Path) -> int:
    """The update of the state that is saved; -1 for none."""
    for path in root.glob(".lorabuild/scratch/*/scratch/state"):
        try:
            with open(path, "rb") as file:
                file.seek(32)  # its digest; then it is safetensors, with the facts in the metadata
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
                return json.loads(header["__metadata__"]["facts"])["step"]
        except FileNotFoundError:  # the training has just ended
            continue
    return -1


if __name__ == "__main__":
    sys.path.append(str(HERE.parent / "tests"))
    main()
