"""Small repositories without a training: each project chops a LoRA file that it brings along."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from world import World

MANIFEST = """\
[project]
base = "tiny"
source = "a.safetensors"
title = "{title}"
[chop]
keep = {keep}
{more}
"""
BLOCKS = (
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_unet_output_blocks_1_0_x",
    "lora_unet_input_blocks_4_1_x",
)


def chops(root: Path, *names: str) -> World:
    """A repository with a project of each name, nothing built."""
    world = World(root)
    world.write("lorabuild.toml", '[build]\ndefault = ["chop"]\n')
    for number, name in enumerate(names):
        source(world, name, seed=number)
        manifest(world, name)
    return world


def source(world: World, name: str, seed: int) -> None:
    """Write the LoRA file that a project chops: three layers of rank 1."""
    tensors = {
        f"{block}.{end}": ([shape, [seed + number + 0.5] * (shape[0] * shape[1])])
        for number, block in enumerate(BLOCKS)
        for end, shape in (("lora_down.weight", (1, 3)), ("lora_up.weight", (2, 1)))
    }
    world.write(f"projects/{name}/a.safetensors", safetensors(tensors))


def safetensors(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of float32 tensors: name -> (shape, numbers)."""
    from array import array

    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, (shape, numbers) in sorted(tensors.items()):
        data = array("f", numbers).tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + body


def manifest(
    world: World, name: str, keep: str = '["TE", "OUT01"]', title: str = "One", variants: dict[str, str] | None = None
) -> None:
    more = "\n".join(f"[variants.{variant}.chop]\nkeep = {keep}" for variant, keep in (variants or {}).items())
    world.write(f"projects/{name}/lora.toml", MANIFEST.format(keep=keep, title=title, more=more))


def lock(world: World, name: str) -> Path:
    return world.root / f"projects/{name}/lora.lock"


def lines(world: World, name: str) -> dict[str, Any]:
    """What a TOML parser reads in a project's lock file."""
    import tomllib

    return tomllib.loads(lock(world, name).read_text())


def git(world: World, *args: str) -> str:
    """Run git in the repository, as somebody of no name and without anybody's settings."""
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = os.environ | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(["git", *args], cwd=world.root, env=env, capture_output=True, text=True)
    assert done.returncode == 0 or args[0] == "merge", done.stderr
    return done.stdout


def repository(world: World) -> None:
    """Make the world a git repository with all that is tracked, on the branch main."""
    world.write(".gitignore", "/build/\n/.lorabuild/\n")
    git(world, "init", "-q", "-b", "main")
    commit(world)


def commit(world: World) -> None:
    git(world, "add", "-A")
    git(world, "commit", "-q", "-m", "x", "--allow-empty")


def age(folder: Path, days: float = 100) -> None:
    """Make every file in a folder old."""
    then = time.time() - days * 86_400
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def record(world: World, key: str) -> Path:
    return world.root / f".lorabuild/store/record/{key[:2]}/{key.replace('/', '.')}.json"


def blob(world: World, digest: str) -> Path:
    return world.root / f".lorabuild/store/blob/{digest[:2]}/{digest}"


def spoil(path: Path) -> None:
    """Change a file's last byte in place."""
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
