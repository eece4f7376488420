"""What is imported builds: both guides' commands on the embedded base, and a file of lorabuild's own again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_import_lora import shaping
from world import REPOSITORY, World

from lorabuild.manifest import load

SAMPLES = Path(__file__).with_name("samples")
# As recipes/tiny.toml, and shorter: what a guide says for a GPU and a day takes seconds.
SHORT = """
[recipe]
max_train_steps = 2
save_every_n_steps = 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["schnell", "pony"])
def test_a_guides_commands_build_on_tiny(guide: str, empty: World):
    empty.project()  # pictures with captions
    shutil.move(empty.root / "projects/ember/images", empty.root / "training_dir/3_ember")
    empty.write("training_dir/sample-prompts.txt", "ember --w 64 --h 64 --s 1\n")
    commands = (SAMPLES / f"{guide}-guide.sh").read_text().replace("/training_dir", f"{empty.root}/training_dir")
    empty.write("guide.sh", commands)
    made = empty.lorabuild("import", "guide.sh", "--base", "tiny")
    assert made.code == 0, made.err

    empty.write("recipes/guide.toml", made.out)
    empty.write("recipes/tiny.toml", (REPOSITORY / "recipes/tiny.toml").read_text())
    empty.write("recipes/short.toml", SHORT)
    empty.write("projects/ember/lora.toml", 'extends = ["guide", "tiny", "short"]\n')
    done = empty.doit("ember")
    assert done.code == 0, done.out + done.err
    build = empty.root / "build/ember"
    assert (build / "ember-resized.safetensors").is_file()
    assert (build / "ember-chopped.safetensors").is_file() == (guide == "schnell")


def test_a_built_file_gives_its_manifest_back(built: World):
    """Written by a whole build, read from the file itself; with the images named again, nothing is trained."""
    wanted = shaping(load(built.root).projects["ember"].settings)
    made = built.lorabuild("import", "build/ember/ember-chopped.safetensors", "--name", "again")
    assert made.code == 0 and "again" in made.out
    manifest = built.root / "projects/again/lora.toml"
    text = manifest.read_text()
    assert text.count("TO BE SET") == 1
    manifest.write_text(text.replace('image_dir = "images"', 'image_dir = "../ember/images"'))
    found = load(built.root).projects["again"].settings
    assert shaping(found) == wanted
    done = built.doit("again")
    assert done.code == 0, done.err
    assert "train:again" not in done.built
    assert done.ran["chop:again"] == "restored"
