"""SIGKILL at any moment: what was finished is kept, nothing is half there, and the end is that of an undisturbed build."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import bench_kills
import killing
import pytest
from test_build import in_training
from world import World

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for workers in /proc")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(tmp_path: Path):
    seed = random.randrange(10**6)
    tally = bench_kills.kill(tmp_path, 20, seed)
    assert (tally.kills, tally.problems) == (20, []), f"seed {seed}: {tally}"
    assert tally.finished, "no kill found a finished job: they all came too early to show anything"


def test_a_kill_in_the_middle_loses_nothing(tmp_path: Path):
    """Three kills, for each run of the tests; the twenty are slow."""
    tally = bench_kills.kill(tmp_path, 3, seed=5)
    assert (tally.kills, tally.problems) == (3, []), tally


def test_the_check_of_kills_sees_what_is_lost_and_what_is_partial(tmp_path: Path):
    golden = killing.undisturbed(tmp_path)
    assert killing.partial(tmp_path, golden) == [] and len(golden.keys) == 20
    records = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in killing.records_of(tmp_path)}
    (blob, *_), (record, other, *_) = killing.files_in(tmp_path / ".lorabuild/store/blob"), records
    blob.chmod(0o644)
    blob.write_bytes(b"half")
    record.write_text('{"stage": ')
    (tmp_path / "build/ember/.ember.safetensors.part").write_bytes(b"half")
    os.utime(other)
    told = killing.partial(tmp_path, golden)
    assert any(line.endswith("is damaged") for line in told)
    assert any("is no record" in line for line in told) and any(".part is not whole" in line for line in told)
    assert len(killing.rewritten(records)) == 2


@pytest.mark.slow
def test_a_training_that_is_killed_three_times_ends_in_the_same_bytes(built_once: World, tmp_path: Path):
    straight = built_once.copy(tmp_path / "straight")
    straight.manifest(steps=16, seed=17)
    killed = straight.copy(tmp_path / "killed")
    seconds = next(event["seconds"] for event in straight.doit().events if event["job"] == "train:ember")

    seed = random.randrange(10**6)
    chance = random.Random(seed)
    for who in killing.WHO:
        driver = in_training(killed)
        time.sleep(chance.random() * seconds / 6)  # it is over three kills that the training gets on
        killing.kill(driver, who)
        driver.wait(60)
        standing = killed.built_files()
        whole = [straight.built_files(), built_once.built_files()]  # new and, where it has not come so far, old
        assert all(data in [files.get(name) for files in whole] for name, data in standing.items()), f"seed {seed}"
        assert not [name for name in standing if ".part" in name or "/." in name], f"seed {seed}"
    result = killed.doit()
    assert result.code == 0, f"seed {seed}: {result.out}{result.err}"
    (train,) = (event for event in result.events if event["job"] == "train:ember")
    assert train.get("resumed_at", 0) > 0 or train["event"] == "restored", f"seed {seed}: {train}"
    assert not {"base:tiny", "norms:tiny", "dataset:ember", "latents:ember"} & result.ran.keys()
    assert killed.built_files() == straight.built_files(), f"seed {seed}"
