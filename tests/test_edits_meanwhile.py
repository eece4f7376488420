"""What is edited while a training runs is for the next build; what is set back is not built again."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import killing
import pytest
from quick_world import build, golden, held_up, made
from world import World


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> killing.Golden:
    return golden(tmp_path_factory.mktemp("golden") / "repository")


def of(project: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith(f"build/{project}/")}


def manifest(old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "projects/ember/lora.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


TRAINS = {f"{stage}:ember" for stage in ("train", "spectrum", "resize", "chop")}
# what is edited -> how, and what the next build builds
EDITS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "image": (lambda root: World(root).picture("images/1.png", 2), TRAINS | {"dataset:ember", "latents:ember"}),
    "added image": (lambda root: World(root).picture("images/2.png", 2), TRAINS | {"dataset:ember", "latents:ember"}),
    "caption": (lambda root: (root / "images/1.txt").write_text("ash"), TRAINS | {"dataset:ember"}),
    "recipe key": (manifest("seed = 1", "seed = 3"), TRAINS),
    "saved steps": (manifest("save_every_n_steps = 2", "save_every_n_steps = 1"), {"train:ember"}),
    "kept blocks": (manifest('"TE", "OUT01"', '"OUT01", "MID01"'), {"chop:ember"}),
    "title": (manifest('base = "tiny"', 'base = "tiny"\ntitle = "Ember"'), set()),
}


OFTEN = ("image", "caption", "recipe key")


@pytest.mark.parametrize(
    "what", [what if what in OFTEN else pytest.param(what, marks=pytest.mark.slow) for what in EDITS]
)
def test_a_result_is_kept_under_the_key_that_it_was_built_for(undisturbed: killing.Golden, tmp_path: Path, what: str):
    edit, rebuilt = EDITS[what]
    root = made(tmp_path / "repository")
    before = {path: path.read_bytes() for folder in ("images", "projects") for path in killing.files_in(root / folder)}
    with held_up(root, "train:ember", "ember") as (first, gate):
        edit(root)
        gate.touch()
        out, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (0, ""), out
    keys = {job: key for job, key in undisturbed.keys.items() if "ember" in job}
    assert {job: key for job, key in killing.keys(root).items() if "ember" in job} == keys
    assert of("ember", killing.built_files(root)) == of("ember", undisturbed.files)

    done = build(root, "ember")
    assert done.code == 0 and done.built == rebuilt, done.said
    assert of("ember", killing.built_files(root)) != of("ember", undisturbed.files)

    for path in killing.files_in(root / "images"):
        path.unlink()
    for path, data in before.items():
        path.write_bytes(data)
    done = build(root, "ember")
    assert done.code == 0 and done.built == set(), done.said
    assert of("ember", killing.built_files(root)) == of("ember", undisturbed.files)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_revert_a_branch_switch_and_a_deleted_build_folder_build_nothing(tmp_path: Path):
    root = made(tmp_path / "repository")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false", "-c", "core.hooksPath="]

    def git(*args: str) -> None:
        subprocess.run(["git", *who, *args], cwd=root, check=True, capture_output=True)

    def files() -> dict[str, bytes]:
        return killing.built_files(root)

    def built() -> set[str]:
        done = build(root)
        assert done.code == 0, done.said
        return done.built

    (root / ".gitignore").write_text("build/\n.lorabuild/\n__pycache__/\n")
    git("init", "-q", "-b", "main")
    assert built()
    git("add", "-A")
    git("commit", "-qm", "first")
    first = files()

    git("checkout", "-qb", "other")
    manifest("seed = 1", "seed = 3")(root)
    manifest('"TE", "OUT01"', '"OUT01"')(root)
    World(root).picture("images/2.png", 2)
    assert built() >= TRAINS
    git("add", "-A")
    git("commit", "-qm", "second")
    second = files()
    assert second.keys() == first.keys() and second != first

    for branch, expected in (("main", first), ("other", second)):
        git("checkout", "-q", branch)
        assert built() == set() and files() == expected
    shutil.rmtree(root / "build")
    assert built() == set() and files() == second
    git("revert", "--no-edit", "HEAD")
    assert built() == set() and files() == first
