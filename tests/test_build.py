"""What rebuilds what: a small repository on the tiny base, one change at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from world import LONGER, World

from lorabuild.header import read_header
from lorabuild.names import block_of

VECTOR = 'vector = "1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0"'


# nothing to do


def test_a_second_doit_runs_nothing_and_imports_nothing_heavy(built: World):
    built.doit()  # the copy's files are new to the stat cache
    result, heavy = built.imports()
    assert (result.code, result.events, heavy) == (0, [], set())
    assert built.latest().read_bytes() == b""
    assert "nothing to do" in result.out


def test_a_copied_repository_runs_nothing(built: World):
    assert built.doit().events == []


def test_touching_everything_runs_nothing(built: World):
    for path in built.root.rglob("*"):
        if ".lorabuild" not in path.parts:
            os.utime(path)
    assert built.doit().events == []


def test_renaming_an_image_with_its_caption_runs_nothing(built: World):
    images = built.root / "projects/ember/images"
    for suffix in (".png", ".txt"):
        (images / f"1{suffix}").rename(images / f"zzz{suffix}")
    assert built.doit().events == []


def test_the_same_blocks_in_another_spelling_run_nothing(built: World):
    built.manifest(keep='["OUT01", "TE2", "TE1"]')
    assert built.doit().events == []
    manifest = built.root / "projects/ember/lora.toml"
    manifest.write_text(manifest.read_text().replace('keep = ["OUT01", "TE2", "TE1"]', VECTOR))
    assert built.doit().events == []


# small edits


def test_another_keep_chops_and_nothing_else_without_torch(built: World):
    built.manifest(keep='["TE", "OUT02"]')
    result, heavy = built.imports()
    assert result.ran == {"chop:ember": "built"}
    assert heavy == set()
    assert "OUT01 1 -> 0" in result.why("chop:ember")
    names = read_header(built.root / "build/ember/ember-chopped.safetensors").tensors
    assert {block_of(name) for name in names} == {"TE1", "TE2", "OUT02"}


def test_another_threshold_resizes_and_chops_without_svd_or_base(built: World):
    built.manifest(thr=-2.8)
    result, heavy = built.imports()
    assert result.ran == {"resize:ember": "built", "chop:ember": "built"}
    assert heavy <= {"numpy"}
    record = record_of(built, "resize")
    assert set(record["inputs"]) == {"spectrum"}  # a job sees its inputs alone, and the base is none of them


def test_a_title_is_published_and_builds_nothing(built: World):
    built.manifest(title='title = "Ember, the fox"')
    result = built.doit()
    assert set(result.ran.values()) == {"published"}
    metadata = read_header(built.root / "build/ember/ember-chopped.safetensors").metadata
    assert metadata["modelspec.title"] == "Ember, the fox"


def test_setting_an_edit_back_restores(built: World):
    before = built.built_files()
    built.manifest(keep='["TE", "OUT02"]', thr=-2.8, title='title = "Ember"')
    assert built.doit().built == {"resize:ember", "chop:ember"}
    built.manifest()
    result = built.doit()
    assert result.built == set() and "restored" in result.ran.values()
    assert built.built_files() == before


# what lies in build/ and in the store


def test_a_deleted_build_folder_is_restored(built: World):
    before = built.built_files()
    shutil.rmtree(built.root / "build")
    result = built.doit()
    assert set(result.ran.values()) == {"restored"}
    assert built.built_files() == before


def test_junk_written_into_an_artifact_in_place_is_undone(built: World):
    before = built.built_files()
    for name in ("ember.safetensors", "ember-chopped.safetensors", "dataset.json"):
        with open(built.root / "build/ember" / name, "r+b") as file:
            file.seek(100)
            file.write(b"junk")
    result = built.doit()
    assert result.ran == {"dataset:ember": "restored", "train:ember": "restored", "chop:ember": "restored"}
    assert built.built_files() == before


def test_a_corrupted_blob_is_noticed_and_rebuilt(built: World):
    before = built.built_files()
    record = record_of(built, "chop")["outputs"]["weights"]["digest"]
    blob = built.root / ".lorabuild/store/blob" / record[:2] / record
    blob.chmod(0o644)
    with open(blob, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"corrupt!")
    result = built.doit()
    assert result.ran == {"chop:ember": "built"}
    assert "blob damaged" in result.why("chop:ember")
    assert built.built_files() == before


def test_a_lost_state_file_costs_nothing_but_a_look(built: World):
    before = built.built_files()
    for path in (built.root / ".lorabuild").glob("state.sqlite*"):
        path.unlink()
    result = built.doit()
    assert result.built == set() and result.code == 0
    assert built.built_files() == before


def record_of(world: World, stage: str) -> dict:
    """A record of `stage` in the store."""
    for path in (world.root / ".lorabuild/store/record").rglob("*.json"):
        record = json.loads(path.read_text())
        if record["stage"] == stage:
            return record
    raise AssertionError(f"no record of {stage}")


# what is no longer wanted


def test_a_snapshot_that_is_no_longer_wanted_leaves_build_and_comes_back(built: World):
    manifest = built.root / "projects/ember/lora.toml"
    before, text = built.built_files(), manifest.read_text()
    manifest.write_text(text.replace("save_every_n_steps = 2", "save_every_n_steps = 4"))
    result = built.doit()
    assert result.built == set() and "removed build/ember/ember-step00000002.safetensors" in result.out
    assert before.keys() - built.built_files().keys() == {"ember/ember-step00000002.safetensors"}
    manifest.write_text(text)
    assert built.doit().ran == {"train:ember": "restored"}
    assert built.built_files() == before


def test_without_its_table_a_chop_leaves_build(built: World):
    manifest = built.root / "projects/ember/lora.toml"
    manifest.write_text(manifest.read_text().partition("[chop]")[0])
    before = built.built_files()
    assert built.doit().events == []
    assert before.keys() - built.built_files().keys() == {"ember/ember-chopped.safetensors"}


def test_what_somebody_has_changed_is_not_removed(built: World):
    manifest = built.root / "projects/ember/lora.toml"
    manifest.write_text(manifest.read_text().partition("[chop]")[0])
    chopped = built.root / "build/ember/ember-chopped.safetensors"
    chopped.write_bytes(b"mine")
    built.doit()
    assert chopped.read_bytes() == b"mine"


def test_what_a_killed_run_was_writing_is_cleared_away(built: World):
    part = built.root / ".lorabuild/store/part/ember.safetensors.x1"
    part.write_bytes(b"half a file")
    assert built.doit().events == []
    assert not part.exists()


# edits that train


def test_a_caption_trains_again_and_encodes_nothing(built: World):
    built.write("projects/ember/images/2.txt", "ember, blue, sit, 2")
    result = built.doit()
    assert result.built == {f"{stage}:ember" for stage in ("dataset", "train", "spectrum", "resize", "chop")}
    assert result.ran.keys() == result.built
    assert result.why("dataset:ember") == "projects/ember/images/2.txt: content"


def test_a_replaced_image_encodes_one_latent(built: World):
    built.picture("projects/ember/images/2.png", seed=9)
    result = built.doit("latents:ember")
    (latents,) = (event for event in result.events if event["job"] == "latents:ember")
    assert (latents["encoded"], latents["reused"]) == (1, 3)


def test_two_projects_with_equal_inputs_train_once(built: World):
    built.project("twin", seed=8)
    built.manifest(seed=8)
    result = built.doit("-n", "2")
    assert result.code == 0, result.out + result.err
    trained = {job: event for job, event in result.ran.items() if job.startswith("train:")}
    assert sorted(trained.values()) == ["built", "restored"]
    assert all(event["why"] for event in result.events), "each says why, also what another job has made"
    assert sorted(event for job, event in result.ran.items() if job.startswith("chop:")) == ["built", "restored"]
    headers = [read_header(built.root / f"build/{name}/{name}-chopped.safetensors") for name in ("ember", "twin")]
    assert [header.metadata["ss_output_name"] for header in headers] == ["ember-chopped", "twin-chopped"]
    assert headers[0].metadata["sshs_model_hash"] == headers[1].metadata["sshs_model_hash"]


@pytest.mark.slow
def test_asked_for_anew_a_training_makes_its_snapshots_anew(built: World):
    records = {
        path: path.stat().st_mtime_ns for path in (built.root / ".lorabuild/store/record").rglob("*.step.*.json")
    }
    before = built.built_files()
    assert built.doit("-a", "train:ember").ran == {"train:ember": "built"}
    assert len(records) == 2 and all(path.stat().st_mtime_ns > then for path, then in records.items())
    assert built.built_files() == before


@pytest.mark.slow
def test_an_image_that_is_added_during_a_training_is_for_the_next_build(built: World):
    built.manifest(seed=12)
    driver = in_training(built)
    built.picture("projects/ember/images/5.png", 5)
    assert driver.wait(240) == 0
    made = (json.loads(line) for line in built.latest().read_text().splitlines())
    assert {line["job"]: line["event"] for line in made}["chop:ember"] == "built"
    result = built.doit("latents:ember")
    assert (result.events[-1]["encoded"], result.events[-1]["reused"]) == (1, 4)


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(built: World, straight: World):
    killed = built
    killed.manifest(**LONGER)
    kill_in_training(killed)
    left = [path for path in killed.root.glob("build/**/*") if path.is_file()]
    assert all(path.suffix != ".part" and not path.name.startswith(".") for path in left)
    result = killed.doit()
    assert result.code == 0, result.out + result.err
    (train,) = (event for event in result.events if event["job"] == "train:ember")
    assert train["resumed_at"] > 0
    assert not {"base:tiny", "norms:tiny", "dataset:ember", "latents:ember"} & result.ran.keys()
    assert killed.built_files() == straight.built_files()


def kill_in_training(world: World) -> None:
    """Kill the whole process group of a build in the middle of its training."""
    driver = in_training(world)
    time.sleep(0.5)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def in_training(world: World) -> subprocess.Popen:
    """A build that has begun to train: a state is on disk."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "doit"]
    driver = subprocess.Popen(command, cwd=world.root, start_new_session=True, stdout=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 240
    while not any(path.is_file() for path in world.root.glob(".lorabuild/scratch/*/scratch/state")):
        assert driver.poll() is None and time.monotonic() < deadline, "no training state was written"
        time.sleep(0.05)
    return driver
