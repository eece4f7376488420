"""The order of a build is tried on paper: what is found is a build that could be, is no longer, and is about what will run."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import quick_world
from world import World

from lorabuild.engine import Engine
from lorabuild.forecast.standing import stale
from lorabuild.rehearsal import SETS, SIMULATED, Paper, priorities, tries_of
from lorabuild.session import opened
from lorabuild.stage import Job
from lorabuild.urgency import levels, urgencies
from lorabuild.workers.slots import Slots

ROOM = {"jobs": 5, "gpu": 3, "cpu": 2}
HEAVY, LIGHT, TWO = {"jobs": 1, "gpu": 1}, {"jobs": 1, "cpu": 1}, {"jobs": 1, "gpu": 2}


def chance_build(seed: int, jobs: int = 40) -> Paper:
    """Jobs of many lengths, each after some of those before it."""
    chance = random.Random(seed)
    names = [f"job:{number}" for number in range(jobs)]
    needs = {
        name: chance.sample(names[:number], min(number, chance.choice((0, 1, 1, 2))))
        for number, name in enumerate(names)
    }
    takes = {name: chance.choice((HEAVY, HEAVY, LIGHT, TWO)) for name in names}
    return Paper({name: chance.uniform(1, 40) for name in names}, needs, takes, ROOM)


def hu(paper: Paper) -> dict[str, float]:
    return levels(paper.seconds, dict(paper.needs))


@pytest.mark.parametrize("seed", range(5))
def test_on_paper_each_job_runs_after_what_it_needs_in_places_that_there_are(seed: int):
    paper = chance_build(seed)
    begins = paper.begins(hu(paper))
    ends = {name: begins[name] + paper.seconds[name] for name in begins}
    assert begins.keys() == paper.seconds.keys()
    assert all(ends[before] <= begins[name] for name in begins for before in paper.needs[name])
    for moment in begins.values():
        at_work = [name for name in begins if begins[name] <= moment < ends[name]]
        for kind, count in ROOM.items():
            assert sum(paper.takes[name].get(kind, 0) for name in at_work) <= count


def test_no_place_stays_empty_beside_a_job_that_could_begin_and_the_largest_priority_goes_first():
    takes = {"long": HEAVY, "short": HEAVY, "two": TWO, "light": LIGHT}
    paper = Paper(
        {"long": 9.0, "short": 1.0, "two": 5.0, "light": 2.0}, {name: [] for name in takes}, takes, {**ROOM, "gpu": 2}
    )
    first = {"long": 1.0, "short": 2.0, "two": 3.0, "light": 0.0}
    assert paper.begins(first) == {"two": 0, "light": 0, "short": 5, "long": 5}
    assert paper.begins({**first, "long": 4.0}) == {"long": 0, "short": 0, "light": 0, "two": 9}


@pytest.mark.parametrize("seed", range(8))
def test_what_is_found_is_no_longer_and_is_found_again(seed: int):
    paper = chance_build(seed)
    found = paper.better(hu(paper), tries=30)
    assert paper.mean(found) <= paper.mean(hu(paper))
    assert found == chance_build(seed).better(hu(paper), tries=30)
    assert found.keys() == paper.seconds.keys()


def test_where_highest_level_first_is_not_the_best_a_shorter_build_is_found():
    shorter = [paper.mean(paper.better(hu(paper))) / paper.mean(hu(paper)) for paper in map(chance_build, range(8))]
    assert min(shorter) < 0.95, shorter


def test_nothing_is_tried_where_the_order_cannot_matter():
    paper = chance_build(1)
    alone = Paper(paper.seconds, paper.needs, dict.fromkeys(paper.seconds, HEAVY), {"jobs": 1, "gpu": 1})
    assert alone.better(hu(alone)) == hu(alone)
    assert Paper({}, {}, {}, ROOM).better({}) == {}


def test_the_more_jobs_the_fewer_tries():
    assert tries_of(0) == tries_of(100) > tries_of(1000) > tries_of(7000) >= tries_of(10**6) == 0
    assert all(tries_of(count) * SETS * count <= SIMULATED for count in (150, 1000, 7000))


def test_what_will_not_run_takes_no_time_and_is_in_nobodys_way():
    jobs = {name: Job(name, {}, {}, ()) for name in ("resize:a", "chop:a", "resize:b", "chop:b")}
    needs = {"resize:a": [], "chop:a": ["resize:a"], "resize:b": [], "chop:b": ["resize:b"]}
    seconds = {"resize:a": 1.0, "chop:a": 100.0, "resize:b": 2.0, "chop:b": 3.0}
    takes = dict.fromkeys(jobs, HEAVY)
    found = priorities(jobs, needs, seconds, {"resize:a", "resize:b", "chop:b"}, takes, {"jobs": 2, "gpu": 2})
    assert found["resize:b"] > found["resize:a"] and found.keys() == jobs.keys()


# in a repository


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three projects, built by stand-ins. Not to be changed."""
    root = quick_world.made(tmp_path_factory.mktemp("rehearsal") / "repository")
    done = quick_world.build(root)
    assert done.code == 0, done.said
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return World(made).copy(tmp_path / "repository").root


def stale_of(root: Path, change: Any = lambda engine: None) -> set[str]:
    with opened(root, writing=True, building=False) as engine:
        change(engine)
        before = dict(engine.assessed)
        found = stale(engine, engine.wanted or engine.jobs)
        assert engine.assessed == before  # the build sees nothing of it
        return found


def test_what_is_built_is_not_rehearsed_and_behind_what_is_stale_all_is_stale(root: Path):
    assert stale_of(root) == set()
    manifest = root / "projects/moss/lora.toml"
    manifest.write_text(manifest.read_text().replace("max_train_steps = 4", "max_train_steps = 6"))
    found = stale_of(root)
    assert {"train:moss", "spectrum:moss", "resize:moss", "chop:moss"} == found
    assert stale_of(root, lambda engine: setattr(engine, "wanted", ["train:moss"])) == {"train:moss"}
    assert stale_of(root, lambda engine: setattr(engine, "wanted", ["chop:ember"])) == set()
    again = stale_of(root, lambda engine: setattr(engine, "anew", frozenset({"resize:ember"})))
    assert again == found | {"resize:ember", "chop:ember"}


def test_what_cannot_be_looked_at_is_to_be_built_and_drops_nothing(root: Path):
    with opened(root, writing=False, building=False) as engine:
        key, _ = engine.state.last("train:ember") or ("", "")
        record = engine.store.record_path(key)
    record.write_bytes(b'{"stage": ')
    (root / "images/1.png").unlink()
    found = stale_of(root)
    assert {"train:ember", "chop:ember", "dataset:moss"} <= found and not found & {"base:tiny", "norms:tiny"}
    assert record.exists()


def with_places(engine: Engine, gpus: int) -> Engine:
    engine.pool.open(Slots(gpus, 2, lambda: [str(number) for number in range(gpus)]))
    return engine


def test_a_build_rehearses_what_it_will_run_where_several_heavy_jobs_may_run_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    rehearsed: list[set[str]] = []
    monkeypatch.setattr(Paper, "better", lambda self, first: rehearsed.append({*self.seconds}) or dict(first))
    manifest = root / "projects/moss/lora.toml"
    manifest.write_text(manifest.read_text().replace("max_train_steps = 4", "max_train_steps = 6"))
    for gpus in (1, 2):
        with opened(root, writing=False, building=False) as engine:
            with_places(engine, gpus)
            engine.wanted = ["chop:ember", "train:moss"]
            assert engine.urgency("train:moss") == engine.urgency("train:moss") > 0
            if gpus == 1:
                needs = {name: [one.job for one in job.lineage.values()] for name, job in engine.jobs.items()}
                plain = urgencies(
                    engine.jobs, needs, dict(zip(engine.jobs, engine.seconds_of([*engine.jobs]), strict=True))
                )
                assert engine.urgency("train:moss") == pytest.approx(plain["train:moss"])
    assert rehearsed == [{"train:moss"}]


@pytest.mark.parametrize("seconds", ["NaN", '"soon"', "-1", "null", "Infinity"])
def test_whatever_stands_in_a_record_a_build_has_an_order(root: Path, seconds: str):
    with opened(root, writing=True, building=False) as engine:
        key, _ = engine.state.last("train:ember") or ("", "")
        record = engine.store.record_path(key)
        known = engine.store.record(key)
        assert known
        record.write_text(record.read_text().replace(f'"seconds": {known.seconds}', f'"seconds": {seconds}'))
        assert engine.seconds_of(["train:ember"]) == [None]
        engine.anew = frozenset(engine.jobs)
        assert with_places(engine, 2).urgency("train:ember") > 0


def test_what_goes_wrong_in_foretelling_costs_the_order_and_not_the_build(root: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*args: Any) -> Any:
        raise RuntimeError("of whatever kind")

    monkeypatch.setattr(Paper, "better", fails)
    with opened(root, writing=False, building=False) as engine:
        assert with_places(engine, 2).urgency("train:ember") == 0.0


def test_what_is_away_has_places_of_its_own(root: Path):
    with opened(root, writing=False, building=False) as engine:
        with_places(engine, 1)
        engine.away = SimpleNamespace(needs=SimpleNamespace(stages={"train"}, jobs=3))  # type: ignore[assignment]  # all that the builder asks of it
        taken = {name: engine._takes(engine.jobs[name]) for name in ("train:moss", "latents:moss", "chop:moss")}
        assert taken == {"train:moss": {"away": 1}, "latents:moss": HEAVY, "chop:moss": LIGHT}
        engine.anew = frozenset(engine.jobs)
        urgency = engine.urgency("train:moss")
    assert urgency > 0


def test_who_finds_room_need_not_say_how_urgent_it_is():
    slots, asked = Slots(2, 1, lambda: ["0", "1"]), []
    with (
        slots.place("gpu", urgency=lambda: asked.append(1) or 1.0),
        slots.place("gpu", urgency=lambda: asked.append(2) or 1.0),
    ):
        assert not asked
    assert slots.room == {"gpu": 2, "cpu": 1, "jobs": 3}
    slots.limit(2)
    assert slots.room["jobs"] == 2 and slots.takes("gpu", 5) == ({"jobs": 1, "gpu": 2}, 2)
    assert Slots(2, 4).takes("gpu") == ({"jobs": 1, "gpu": 1, "cpu": 1}, 1)
