"""The benchmark of scale runs at a small size; its virtual build keeps to what a build keeps to, and to what is the least time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import bench_scale
from bench_scale import ORDERS, bound, costs_shown, main, makespan, order_shown, overhead, world

from lorabuild.stages import STAGES


@pytest.fixture(scope="module")
def small() -> bench_scale.World:
    return world(5, seed=1)


@pytest.mark.parametrize("gpus", [1, 2, 3])
@pytest.mark.parametrize("how", ORDERS)
def test_a_virtual_build_does_each_job_once_after_what_it_needs_and_on_slots_that_there_are(
    small: bench_scale.World, gpus: int, how: str
):
    seconds, began = makespan(small, gpus, how, cpus=2)
    start = {name: at for at, name in began}
    assert start.keys() == small.jobs.keys() and len(began) == len(start)
    end = {name: at + small.seconds[name] for name, at in start.items()}
    assert seconds == max(end.values()) >= bound(small, gpus)
    for name, needed in small.needs.items():
        assert all(end[one] <= start[name] for one in needed), name
    for moment in start.values():
        running = [name for name in start if start[name] <= moment < end[name]]
        heavy = sum(STAGES[small.jobs[name].stage].slot == "gpu" for name in running)
        assert heavy <= gpus and len(running) - heavy <= 2


def test_one_gpu_has_work_all_the_time(small: bench_scale.World):
    assert makespan(small, 1, "as they come")[0] == pytest.approx(bound(small, 1), rel=0.01)


def test_long_trainings_go_first_and_nine_tenths_of_the_ideal_are_reached():
    twenty = world(20, seed=8)
    reached = {how: bound(twenty, 8) / makespan(twenty, 8, how)[0] for how in ORDERS}
    assert reached["recorded"] >= bench_scale.WANTED > reached["as they come"], reached
    assert reached["never built"] >= bench_scale.WANTED, reached
    _, began = makespan(twenty, 4, "recorded")
    trainings = [name for _, name in began if name.startswith("train:")]
    longest = sorted(trainings, key=twenty.seconds.__getitem__)[-5:]
    assert sorted(map(trainings.index, longest))[-1] < 12


def test_the_tables_and_the_json(capsys: pytest.CaptureFixture[str]):
    assert main(["order", "--projects", "3", "--gpus", "1", "2", "--worlds", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["gpus"] for row in said["order"]] == [1, 2]
    assert order_shown(said["order"]).count("\n") == 3


@pytest.mark.parametrize("kind", ["local", pytest.param("slurm", marks=pytest.mark.slow)])
def test_the_overhead_of_a_few_jobs(kind: str):
    cost = overhead(kind, jobs=2, references=1, at_once=2)
    assert cost.jobs == 2 and cost.bare[0] != 0 and cost.kept > 0
    assert kind in costs_shown([cost])
