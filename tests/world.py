"""Small repositories to build in: change one thing, run `doit`, see what ran."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "diffusers", "transformers", "numpy", "lycoris")

MANIFEST = """\
[project]
base = "tiny"
trigger = "ember"
{title}
[dataset]
resolution = [64, 64]
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 32
flip_aug = true
shuffle_caption = true
keep_tokens = 1
[[dataset.subset]]
image_dir = "images"

[recipe]
network_dim = 4
network_alpha = 2
network_args = {{ conv_dim = 2, conv_alpha = 2 }}
unet_lr = 5e-3
text_encoder_lr = 1e-3
max_train_steps = {steps}
train_batch_size = 2
save_every_n_steps = 2
multires_noise_iterations = 2
seed = {seed}

[resize]
fro_ckpt = 1
thr = {thr}

[chop]
keep = {keep}
"""

LONGER = {"steps": 12, "seed": 11}  # a training that can be interrupted


@dataclass(frozen=True)
class Result:
    """What a command did: exit code, what it printed, and the lines of the run log."""

    code: int
    out: str
    err: str
    events: list[dict[str, Any]]

    @property
    def ran(self) -> dict[str, str]:
        """job -> event."""
        return {line["job"]: line["event"] for line in self.events}

    @property
    def built(self) -> set[str]:
        return {job for job, event in self.ran.items() if event == "built"}

    def why(self, job: str) -> str:
        return "; ".join(line for event in self.events if event["job"] == job for line in event["why"])


class World:
    """A repository in a folder of its own."""

    def __init__(self, root: Path):
        self.root = root
        if not root.exists():
            root.mkdir(parents=True)
            shutil.copy(REPOSITORY / "dodo.py", root)
            pyproject = (REPOSITORY / "pyproject.toml").read_text()
            start = pyproject.index("[tool.doit.plugins.command]")
            self.write("pyproject.toml", pyproject[start : pyproject.index("[tool.pytest")])

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def manifest(self, name: str = "ember", **changes: Any) -> None:
        """Write a manifest: steps, seed, thr, keep, title."""
        values = {"steps": 4, "seed": 7, "thr": -2.6, "keep": '["TE", "OUT01"]', "title": ""} | changes
        self.write(f"projects/{name}/lora.toml", MANIFEST.format(**values))

    def picture(self, name: str, seed: int, size: tuple[int, int] = (64, 64)) -> None:
        """An image with some structure, the same for the same seed."""
        from PIL import Image

        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = bytes(
            (x * (seed + 3) + y * (7 - c) + c * 80 * seed) % 256
            for y in range(size[1])
            for x in range(size[0])
            for c in range(3)
        )
        Image.frombytes("RGB", size, pixels).save(path)

    def project(self, name: str = "ember", **changes: Any) -> None:
        """A whole little project: four pictures of two shapes, with captions."""
        self.manifest(name, **changes)
        for number, size in enumerate([(64, 64), (64, 64), (64, 96), (96, 64)], 1):
            self.picture(f"projects/{name}/images/{number}.png", number, size)
            self.write(f"projects/{name}/images/{number}.txt", f"ember, red, sit, {number}")

    def run(self, *command: str, **env: str) -> Result:
        """Run a command in the repository, as a user would."""
        before = self.latest()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"} | env
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=400)
        events = self.log() if self.latest() != before else []
        return Result(done.returncode, done.stdout, done.stderr, events)

    def doit(self, *args: str, **env: str) -> Result:
        return self.run(sys.executable, "-m", "doit", *args, **env)

    def lorabuild(self, *args: str, **env: str) -> Result:
        return self.run(sys.executable, "-m", "lorabuild", *args, **env)

    def imports(self, *args: str) -> tuple[Result, set[str]]:
        """`doit` with its result, and which heavy packages it and its workers imported."""
        log = self.root / ".lorabuild/logs/worker.log"
        log.unlink(missing_ok=True)
        result = self.doit(*args, PYTHONPROFILEIMPORTTIME="1")
        job_logs = "".join(path.read_text() for path in log.parent.glob("*.log")) if log.parent.exists() else ""
        names = {
            line.rpartition("|")[2].strip() for line in (result.err + job_logs).splitlines() if "import time:" in line
        }
        assert "lorabuild.engine" in names, "the profile of imports is not there: this check would prove nothing"
        return result, {name for name in names if name in HEAVY}

    def latest(self) -> Path | None:
        link = self.root / ".lorabuild/runs/latest.jsonl"
        return link.resolve() if link.exists() else None

    def log(self) -> list[dict[str, Any]]:
        """The lines of the latest run's log."""
        latest = self.latest()
        return [json.loads(line) for line in latest.read_text().splitlines()] if latest else []

    def built_files(self) -> dict[str, bytes]:
        """The artifacts that stand in build/, by relative name. What one watches a training by is none."""
        build = self.root / "build"
        found = {path.relative_to(build): path for path in sorted(build.rglob("*")) if path.is_file()}
        watched = ("live", "logs")
        return {str(name): path.read_bytes() for name, path in found.items() if name.parts[1] not in watched}

    def copy(self, root: Path) -> World:
        """The same repository elsewhere, as `cp -a` leaves it."""
        shutil.copytree(self.root, root, symlinks=True)
        return World(root)
