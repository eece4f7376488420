"""The benchmark of scale runs at a small size; its virtual build keeps to what a build keeps to, and to what is the least time."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import bench_scale
from bench_scale import ORDERS, bound, costs_shown, main, makespan, order_shown, overhead, recorded, rounds, world

from lorabuild.rehearsal import Paper
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
    assert reached["recorded, not rehearsed"] >= bench_scale.WANTED, reached
    assert reached["never built"] >= bench_scale.WANTED, reached
    _, began = makespan(twenty, 4, "recorded")
    trainings = [name for _, name in began if name.startswith("train:")]
    longest = sorted(trainings, key=twenty.seconds.__getitem__)[-5:]
    assert sorted(map(trainings.index, longest))[-1] < 12


def test_the_tables_and_the_json(capsys: pytest.CaptureFixture[str]):
    code = main(["order", "--projects", "3", "--gpus", "1", "2", "--worlds", "1", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == any(row["recorded"] < bench_scale.WANTED for rows in said.values() for row in rows)
    assert [row["gpus"] for row in said["order"]] == [row["gpus"] for row in said["order, recorded times"]] == [1, 2]
    assert order_shown(said["order"]).count("\n") == 3


def test_an_order_under_nine_tenths_ends_with_an_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    short = {**dict.fromkeys(ORDERS, 1.0), "recorded": 0.899, "gpus": 8, "hours": 1.0}
    monkeypatch.setattr(bench_scale, "order", lambda projects, gpus, seeds, times: [short] if times else [])
    assert main(["order"]) == 1
    monkeypatch.setattr(bench_scale, "order", lambda *args: [{**short, "recorded": 0.9}])
    assert main(["order"]) == 0


def test_the_recorded_times_are_there_for_every_stage_of_a_world(small: bench_scale.World):
    times = recorded([bench_scale.RECORDED])
    again = world(5, 1, times)
    assert {job.stage for job in again.jobs.values()} <= times.keys()
    assert all(again.seconds[name] in times[job.stage] for name, job in again.jobs.items())


# the bound


def shortest(seconds: list[float], machines: int) -> float:
    """The least makespan of jobs that need nothing, by trying all."""
    placed = product(range(machines), repeat=len(seconds))
    return min(
        max(sum(one for one, at in zip(seconds, places, strict=True) if at == machine) for machine in range(machines))
        for places in placed
    )


@pytest.mark.parametrize("seed", range(12))
def test_rounds_are_never_above_the_shortest_way_to_do_all(seed: int):
    chance = random.Random(seed)
    machines, seconds = chance.choice((2, 3)), [chance.choice((1.0, 3.0, chance.uniform(1, 9))) for _ in range(7)]
    assert max(sum(seconds) / machines, *seconds) <= rounds(seconds, machines) <= shortest(seconds, machines) + 1e-9


def test_twenty_jobs_on_sixteen_machines_take_two_rounds():
    assert rounds([39.0] * 20, 16) == 78.0
    assert rounds([39.0] * 4 + [50.0] * 13, 16) == 39 + 39
    assert rounds([39.0] + [50.0] * 16, 16) == 39 + 50
    assert rounds([39.0] * 33, 16) == 3 * 39 and rounds([5.0], 16) == 5


@pytest.mark.parametrize("gpus", [1, 2, 3, 5])
def test_no_order_is_below_the_bound(small: bench_scale.World, gpus: int):
    chance = random.Random(gpus)
    takes = {name: {STAGES[job.stage].slot: 1} for name, job in small.jobs.items()}
    for _ in range(40):
        seconds = {name: chance.choice((1.0, 5.0, 40.0, chance.uniform(1, 40))) for name in small.jobs}
        least = bound(replace(small, seconds=seconds), gpus)
        paper = Paper(seconds, small.needs, takes, {"gpu": gpus, "cpu": 99})
        for _ in range(5):
            begins = paper.begins({name: chance.random() for name in seconds})
            assert least <= max(begins[name] + seconds[name] for name in begins) + 1e-9


@pytest.mark.parametrize("kind", ["local", pytest.param("slurm", marks=pytest.mark.slow)])
def test_the_overhead_of_a_few_jobs(kind: str):
    cost = overhead(kind, jobs=2, references=1, at_once=2)
    assert cost.jobs == 2 and cost.bare[0] != 0 and cost.kept > 0
    assert kind in costs_shown([cost])
