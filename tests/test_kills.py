"""SIGKILL at any moment: what was finished is kept, nothing is half there, and the end is that of an undisturbed build."""

from __future__ import annotations

import os
import random
from pathlib import Path

import bench_kills
import bench_train_kills
import killing
import pytest

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
def test_a_training_that_is_killed_three_times_ends_in_the_same_bytes(tmp_path: Path):
    """With phases, accumulation over the ends of epochs, every dropout, and ClybW; `bench_train_kills.py` kills ten times."""
    seed = random.randrange(10**6)
    tally = bench_train_kills.kill_training(tmp_path, 3, seed, phases=(4, 6))
    assert tally.problems == [], f"seed {seed}: {tally}"
    assert tally.kills and tally.resumed, f"seed {seed}: {tally}: no kill fell into the training"
