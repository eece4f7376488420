"""`lorabuild pull` and `push`: artifacts by lock, without the data set, equal to those of the machine that built them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from locks import write_lock
from world import World

from lorabuild.header import read_header
from lorabuild.remotes.transport import Folder


def without_images(world: World, root: Path) -> World:
    """What git gives where the data set is not in git."""
    shutil.copytree(world.root, root, ignore=shutil.ignore_patterns(".lorabuild", "build", "images"))
    return World(root)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/remote"


@pytest.fixture
def shared(built: World, url: str) -> World:
    """A built repository with a lock, all of it on the remote."""
    built.write("lorabuild.local.toml", f'[store]\nremote = "{url}"\n')
    write_lock(built)
    result = built.lorabuild("push")
    assert (result.code, result.err) == (0, "")
    return built


@pytest.fixture
def clone(shared: World, tmp_path: Path) -> World:
    return without_images(shared, tmp_path / "clone")


# pull


def test_pull_restores_every_artifact_without_the_data_set(shared: World, clone: World):
    result = clone.lorabuild("pull")
    assert (result.code, result.err) == (0, ""), result.err
    assert result.out.startswith("ember: 7 of 7 jobs fetched, ")
    assert clone.built_files() == shared.built_files()
    there, here = ({p.name for p in (w.root / ".lorabuild/store/record").rglob("*.json")} for w in (shared, clone))
    assert here < there and len(there - here) == 1  # a base is no project's own: nothing here needs it
    again = clone.lorabuild("pull")
    assert (again.code, again.out) == (0, "ember: nothing to do\n")


def test_ancestors_that_the_lock_does_not_name_are_found_through_the_records(shared: World, tmp_path: Path):
    write_lock(shared, shared=False)
    clone = without_images(shared, tmp_path / "clone")
    assert clone.doit("list").code == 0
    assert clone.lorabuild("pull").code == 0
    assert clone.built_files() == shared.built_files()


def test_with_the_data_set_back_nothing_is_left_to_build(shared: World, clone: World):
    clone.lorabuild("pull")
    shutil.copytree(shared.root / "projects/ember/images", clone.root / "projects/ember/images")
    assert clone.doit().ran == {"base:tiny": "restored"}  # which no lock names
    clone.manifest(keep='["TE"]')
    result = clone.doit()
    assert result.ran == {"chop:ember": "built"} and "OUT01 1 -> 0" in result.why("chop:ember")


def test_an_artifact_that_was_edited_is_pulled_back(shared: World, clone: World):
    clone.lorabuild("pull")
    clone.write("build/ember/ember-chopped.safetensors", b"junk")
    (clone.root / "build/ember/train.jsonl").unlink()
    assert "2 files restored" in clone.lorabuild("pull", "ember").out
    assert clone.built_files() == shared.built_files()


def test_a_title_of_the_clones_own_is_in_its_headers(clone: World):
    clone.manifest(title='title = "Ember, the fox"')
    assert clone.lorabuild("pull").code == 0
    header = read_header(clone.root / "build/ember/ember-chopped.safetensors")
    assert header.metadata["modelspec.title"] == "Ember, the fox"


def test_what_is_damaged_is_told_and_the_rest_is_restored(shared: World, clone: World, url: str, tmp_path: Path):
    line = json.loads(next((shared.root / ".lorabuild/store/record").rglob("*.step.2.json")).read_bytes())
    digest = line["outputs"]["step/2"]["digest"]
    Folder(url).upload(f"v1/blob/{digest[:2]}/{digest}", b"x" * line["outputs"]["step/2"]["size"], replace=True)
    result = clone.lorabuild("pull")
    assert result.code == 1 and "Traceback" not in result.err
    (said,) = result.err.splitlines()
    assert said == f"ember: train:ember: blob {digest}: damaged"
    assert not (clone.root / f".lorabuild/store/blob/{digest[:2]}/{digest}").exists()


def test_what_is_made_of_something_damaged_is_restored(shared: World, clone: World, url: str):
    record = json.loads(
        next(p for p in records(shared) if json.loads(p.read_bytes())["stage"] == "spectrum").read_bytes()
    )
    (spectrum,) = record["outputs"].values()
    digest = spectrum["digest"]
    Folder(url).upload(f"v1/blob/{digest[:2]}/{digest}", b"x" * spectrum["size"], replace=True)
    result = clone.lorabuild("pull")
    assert (result.code, result.err) == (1, f"ember: spectrum:ember: blob {digest}: damaged\n")
    assert clone.built_files() == shared.built_files()


def records(world: World) -> Iterator[Path]:
    return (world.root / ".lorabuild/store/record").rglob("*.json")


def test_one_damaged_lock_stops_no_other_project(shared: World, clone: World):
    clone.write("projects/other/lora.toml", (clone.root / "projects/ember/lora.toml").read_text())
    clone.write("projects/other/lora.lock", "<<<<<<< HEAD\n")
    result = clone.lorabuild("pull")
    assert result.code == 3 and len(result.err.splitlines()) == 1
    assert result.err.startswith("other: projects/other/lora.lock: cannot be read: ")
    assert clone.built_files() == shared.built_files()


def test_a_remote_that_lacks_something_is_told(clone: World, url: str):
    fs, root = Folder(url)._open()
    fs.rm(f"{root}/v1/record", recursive=True)
    result = clone.lorabuild("pull")
    assert result.code == 1 and f"ember: chop:ember: not in the store here, nor on {url}" in result.err
    assert not (clone.root / "build").exists()


def test_without_a_remote_the_store_here_is_enough(built: World):
    write_lock(built)
    before = built.built_files()
    shutil.rmtree(built.root / "build")
    shutil.rmtree(built.root / "projects/ember/images")
    assert built.lorabuild("pull").code == 0
    assert built.built_files() == before


def test_a_remote_that_cannot_be_reached_is_one_line(clone: World, s3):
    clone.write("lorabuild.local.toml", '[store]\nremote = "s3://no-such-bucket/prefix"\n')
    s3.fails("500")
    result = clone.lorabuild("pull")
    assert result.code == 1 and len(result.err.splitlines()) == 1
    assert result.err.startswith("remote store s3://no-such-bucket/prefix: ")


@pytest.mark.parametrize(
    ("lock", "code", "said"),
    [
        ("<<<<<<< HEAD\n", 3, "projects/ember/lora.lock: cannot be read: "),
        ('"chop:ember" = 1\n', 3, "projects/ember/lora.lock: is not as lorabuild writes it"),
        ('"chop:ember" = { key = "../../x", outputs = {} }\n', 3, "is not as lorabuild writes it"),
        (None, 1, "projects/ember/lora.lock: no such file"),
    ],
)
def test_a_lock_that_is_none_is_one_line(clone: World, lock: str | None, code: int, said: str):
    path = clone.root / "projects/ember/lora.lock"
    path.unlink() if lock is None else path.write_text(lock)
    result = clone.lorabuild("pull", "ember")
    assert result.code == code and said in result.err and len(result.err.splitlines()) == 1


def test_pull_takes_names_of_projects(clone: World):
    result = clone.lorabuild("pull", "embr")
    assert (result.code, result.err) == (2, 'embr: no such project (did you mean "ember"?)\n')
    assert clone.lorabuild("pull", "--no").code == 2


def test_json_stands_alone(clone: World):
    result = clone.lorabuild("pull", "--json")
    done = json.loads(result.out)["projects"]["ember"]
    assert result.code == 0 and done["lines"] == 7 and len(done["fetched"]) == 7 and done["problems"] == []
    assert "build/ember/ember-chopped.safetensors" in done["restored"] and done["bytes"] > 1_000_000
    assert json.loads(clone.doit("push", "--json").out)["uploaded"] == []


def test_a_project_with_a_source_comes_without_it(built: World, url: str, tmp_path: Path):
    shutil.copy(built.root / "build/ember/ember.safetensors", built.root / "projects/ember/old.safetensors")
    text = (built.root / "projects/ember/lora.toml").read_text()
    head, _, rest = text.partition("[dataset]")
    built.write(
        "projects/ember/lora.toml", f'{head}source = "old.safetensors"\n[resize]{rest.partition("[resize]")[2]}'
    )
    built.write("lorabuild.local.toml", f'[store]\nremote = "{url}"\n')
    assert built.doit().code == 0
    write_lock(built)
    assert built.lorabuild("push").code == 0
    clone = without_images(built, tmp_path / "clone")
    (clone.root / "projects/ember/old.safetensors").unlink()
    failed = clone.doit()
    assert failed.code == 1 and "its source is missing here: `lorabuild pull ember`" in failed.err
    result = clone.lorabuild("pull")
    assert result.code == 0 and "no longer in the manifest: dataset:ember, latents:ember, train:ember" in result.out
    for name, content in clone.built_files().items():
        assert content == built.built_files()[name]
    assert "ember/ember-chopped.safetensors" in clone.built_files()


# a clone without its data set


def test_doit_says_that_the_images_are_missing_and_names_pull(clone: World):
    result = clone.doit()
    assert result.code == 1
    said, summed_up = [line for line in result.out.splitlines() if "pull" in line]
    assert said.startswith("dataset:ember FAILED: projects/ember/images: no such folder")
    assert summed_up.startswith("failed: dataset:ember: projects/ember/images: no such folder")
    assert said.endswith("; its images are missing here: `lorabuild pull ember` restores its artifacts all the same")
    (clone.root / "projects/ember/images").mkdir()
    assert "`lorabuild pull ember`" in clone.doit().out


def test_without_a_lock_or_a_remote_pull_is_not_named(clone: World):
    lock = clone.root / "projects/ember/lora.lock"
    text = lock.read_text()
    lock.unlink()
    assert "pull" not in clone.doit().out
    lock.write_text(text)
    (clone.root / "lorabuild.local.toml").unlink()
    result = clone.doit()
    assert result.code == 1 and "no such folder" in result.out and "pull" not in result.out


# push


def test_push_uploads_what_the_remote_lacks_and_nothing_twice(shared: World, url: str):
    assert "0 jobs uploaded" in shared.lorabuild("push").out
    fs, root = Folder(url)._open()
    record = next((shared.root / ".lorabuild/store/record").rglob("*.step.2.json"))
    digest = json.loads(record.read_bytes())["outputs"]["step/2"]["digest"]
    fs.rm_file(f"{root}/v1/blob/{digest[:2]}/{digest}")
    assert shared.lorabuild("push").out.startswith("1 jobs uploaded")
    fs.rm_file(f"{root}/v1/record/{record.parent.name}/{record.name}")
    assert json.loads(shared.lorabuild("push", "ember", "--json").out)["uploaded"] == ["train:ember"]


def test_push_says_what_is_not_built(shared: World):
    shared.manifest(keep='["TE"]')
    result = shared.lorabuild("push")
    assert result.code == 0 and result.err == "chop:ember: nothing to upload: never built\n"
    shutil.rmtree(shared.root / "projects/ember/images")
    (said,) = shared.lorabuild("push").err.splitlines()
    assert said.startswith("dataset:ember and 5 more: nothing to upload: projects/ember/images: no such folder")


def test_push_needs_a_remote_that_takes_something(built: World, url: str):
    result = built.lorabuild("push")
    assert result.code == 1 and "no remote is named" in result.err
    built.write("lorabuild.local.toml", f'[store]\nremote = "{url}"\nread_only = true\n')
    result = built.lorabuild("push")
    assert (result.code, result.err) == (1, "nothing is uploaded: [store] read_only = true\n")


def test_two_builds_of_one_key_the_first_stays_and_pull_says_so(shared: World, clone: World):
    """As when two GPUs train one key: other bytes, the same key."""
    lock = clone.root / "projects/ember/lora.lock"
    record = next((shared.root / ".lorabuild/store/record").rglob("*.step.2.json"))
    digest = json.loads(record.read_bytes())["outputs"]["step/2"]["digest"]
    lock.write_text(lock.read_text().replace(digest, "0" * 32))
    result = clone.lorabuild("pull")
    assert result.code == 0 and "train:ember: another build of the same key" in result.out
    assert clone.built_files() == shared.built_files()
