"""The tutorial, run from its first command to its last, in an empty folder: each does what the page says."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from world import REPOSITORY, World

PAGE = (REPOSITORY / "docs/tutorial.md").read_text()
TINY, REAL = PAGE.split("\n## On a real SDXL\n")
STALE = ("lorabuild plan", "lorabuild doctor")  # that exit with 1 is an answer
QUICK = "dataset.resolution=64,64 dataset.min_bucket_reso=32 recipe.max_train_steps=2 recipe.save_every_n_steps=2"


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


class Shell:
    """A user's shell: `cd` counts, and `lorabuild` and `doit` are this Python's."""

    def __init__(self, folder: Path):
        self.world, self.home = World(folder), folder

    def run(self, line: str) -> str:
        if line.startswith("cd "):
            self.world.root /= line[3:]
            return ""
        tool, _, rest = line.partition(" ")
        result = self.world.run("sh", "-c", f'set -f; exec "{sys.executable}" -m {tool} {rest}', HOME=str(self.home))
        assert result.code == 0 or (result.code == 1 and line.startswith(STALE)), f"{line}\n{result.out}{result.err}"
        return result.out


def with_pictures(folder: Path) -> Shell:
    shutil.copytree(REPOSITORY / "projects/ember/images", folder / "pictures")
    return Shell(folder)


def test_every_command_of_the_page_is_known():
    from lorabuild.cli import VERBS

    for line in commands(PAGE):
        tool, verb, *_ = *line.split(), ""
        assert tool in ("cd", "doit") or (tool == "lorabuild" and verb in VERBS), line


@pytest.mark.slow
def test_the_way_on_tiny(tmp_path: Path):
    shell = with_pictures(tmp_path)
    said = []
    for line in commands(TINY):
        said.append((line, shell.run(line)))
        if line.startswith("lorabuild new ember "):
            shell.run(f"lorabuild set ember {QUICK}")  # the page's recipe, but seconds instead of a minute
        if line == "lorabuild set ember recipe.max_train_steps=":
            shell.run("lorabuild set ember recipe.max_train_steps=2")
    builds = [out.strip().splitlines()[-1] for line, out in said if line == "doit"]
    assert "built in" in builds[0] and builds[1].startswith("nothing to do")
    assert builds[2].startswith("1 built") and builds[3].startswith("1 built")
    assert builds[4].startswith("1 restored") and "built" not in builds[6]
    plans = [out for line, out in said if line == "lorabuild plan ember"]
    assert "recipe.max_train_steps: 2 -> 16" in plans[0] and plans[1].startswith("nothing to do")
    names = {path.name for path in (tmp_path / "my-loras/build/ember").glob("*.safetensors")}
    assert {f"ember{end}.safetensors" for end in ("", "-resized", "-chopped", "-mini-chopped")} <= names


@pytest.mark.slow
def test_the_way_on_a_real_checkpoint_up_to_its_training(tmp_path: Path):
    """The checkpoint is one of tiny's widths in SGM's layout; 80 updates at 1024 x 1024 are for a GPU."""
    from sgm_base import write_sgm
    from tiny_base import tiny_folder

    shell = with_pictures(tmp_path)
    for line in commands(TINY)[:2]:
        shell.run(line)
    models = tmp_path / "ComfyUI/models/checkpoints"
    for name, block in re.findall(r"```toml\n# ([\w.]+)\n(.*?)```", REAL, re.S):
        with open(tmp_path / "my-loras" / name, "a") as file:
            file.write(block)
    write_sgm(models / "ponyDiffusionV6XL_v6StartWithThisOne.safetensors")
    shutil.copytree(tiny_folder() / "tokenizer", models / "tokenizer")
    said = {line: shell.run(line) for line in commands(REAL)}
    assert "12 images" in said["lorabuild new fox --images ../pictures --trigger ember"]
    assert "0 errors" in said["lorabuild check fox"] and "80 updates in all" in said["lorabuild plan fox"]
    assert 'base = "pony"' in (tmp_path / "my-loras/projects/fox/lora.toml").read_text()
    assert shell.run("lorabuild set fox recipe.max_train_steps=120")
