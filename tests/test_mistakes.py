"""A user's mistakes: one clear line with the place and a near miss, the right exit code, nothing half-written."""

from __future__ import annotations

import pytest
from world import MANIFEST, World


def edited(world: World, old: str, new: str) -> int:
    """Replace a line's text in the manifest; returns its line number."""
    path = world.root / "projects/ember/lora.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("network_dim = 4", "network_dmi = 4", 'recipe.network_dmi: unknown key (did you mean "network_dim"?)'),
        ('"OUT01"', '"OUT1"', 'did you mean "OUT01"?'),
        ('base = "tiny"', 'base = "tinny"', 'did you mean "tiny"?'),
        ("seed = 7", "seed = ", "TOML"),
        ("max_train_steps = 4", 'max_train_steps = "four"', "max_train_steps"),
    ],
)
def test_a_wrong_manifest_is_one_line_with_its_place(empty: World, old: str, new: str, message: str):
    empty.project()
    line = edited(empty, old, new)
    result = empty.doit()
    assert result.code == 3
    (said,) = result.err.strip().splitlines()
    assert said.startswith(f"projects/ember/lora.toml:{line}: ") and message in said
    assert not (empty.root / "build").exists()


def test_an_unknown_recipe_has_a_near_miss(empty: World):
    empty.project()
    empty.write("recipes/schnell.toml", "[recipe]\nseed = 1\n")
    path = empty.root / "projects/ember/lora.toml"
    path.write_text('extends = "schnel"\n' + path.read_text())
    result = empty.doit()
    assert result.code == 3
    (said,) = result.err.strip().splitlines()
    assert said.startswith("projects/ember/lora.toml:1: ") and 'did you mean "schnell"?' in said


def test_all_mistakes_of_all_manifests_are_told_at_once(empty: World):
    for name in ("ember", "other"):
        empty.write(
            f"projects/{name}/lora.toml", MANIFEST.format(title="", steps=4, seed='"x"', thr=-2, keep='["NOPE"]')
        )
    result = empty.doit()
    assert result.code == 3
    lines = result.err.strip().splitlines()
    assert len(lines) == 4
    assert sum(line.startswith("projects/other/lora.toml:") for line in lines) == 2


def test_a_missing_image_folder_is_named(empty: World):
    empty.manifest()
    result = empty.doit("dataset")  # no base need be made for it
    assert result.code == 1
    assert "projects/ember/images" in result.out and "no such folder" in result.out
    assert "Traceback" not in result.out + result.err
    assert result.ran["dataset:ember"] == "failed"
    assert not (empty.root / "build").exists()


def test_bad_files_are_all_named_and_the_build_completes_once_they_are_mended(built: World):
    good_image, good_caption = (
        (built.root / f"projects/ember/images/{name}").read_bytes() for name in ("1.png", "2.txt")
    )
    before = built.built_files()
    built.write("projects/ember/images/1.png", good_image[: len(good_image) // 2])
    built.write("projects/ember/images/2.txt", b"ember, caf\xe9")
    result = built.doit()
    assert result.code == 1
    assert "projects/ember/images/1.png" in result.out and "truncated" in result.out
    assert "projects/ember/images/2.txt" in result.out and "UTF-8" in result.out
    assert "Traceback" not in result.out + result.err
    assert result.built == set()
    assert built.built_files() == before

    built.write("projects/ember/images/1.png", good_image)
    built.write("projects/ember/images/2.txt", good_caption)
    result = built.doit()
    assert (result.code, result.built) == (0, set())
    assert built.built_files() == before


def test_a_chop_that_keeps_nothing_fails_in_one_line(built: World):
    built.manifest(keep='["INP00"]')  # a block that a LoCon of this preset does not have
    result = built.doit()
    assert result.code == 1 and result.ran["chop:ember"] == "failed"
    assert len([line for line in result.out.splitlines() if "FAILED" in line]) == 1


def test_a_place_that_cannot_be_written_is_one_line(built: World):
    path = built.root / "build/ember/ember-chopped.safetensors"
    path.unlink()
    path.mkdir()
    result = built.doit()
    assert result.code == 1 and result.ran == {"chop:ember": "failed"}
    assert "Traceback" not in result.out + result.err
    path.rmdir()
    assert built.doit().ran == {"chop:ember": "restored"}


def test_without_projects_nothing_is_built(empty: World):
    result = empty.doit()
    assert (result.code, result.events) == (0, [])
    assert "no projects" in result.out and not (empty.root / ".lorabuild/base").exists()


def test_with_continue_other_projects_are_built(built: World):
    built.project("broken")
    built.write("projects/broken/images/1.png", b"not an image")
    built.manifest(keep='["TE"]')
    result = built.doit("--continue")
    assert result.code == 1
    assert result.ran == {"dataset:broken": "failed", "chop:ember": "built"}


def test_doits_own_run_builds_nothing_and_says_what_does(empty: World):
    empty.project()
    empty.write("pyproject.toml", "")  # no command of ours is registered
    result = empty.doit()
    assert result.code != 0 and "Traceback" not in result.out + result.err
    assert "doit's own `run` is at work" in result.err and "`lorabuild init`" in result.err
    assert not (empty.root / "build").exists()
