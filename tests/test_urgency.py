"""Who goes first of the jobs that wait: the one behind which most is still to come."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from lorabuild.errors import Interrupted
from lorabuild.executors.away import Away
from lorabuild.stage import Job
from lorabuild.urgency import urgencies
from lorabuild.workers.slots import Slots


def train(name: str, **recipe: Any) -> Job:
    usual = {"max_train_steps": 10, "train_batch_size": 1, "gradient_accumulation_steps": 1}
    return Job(f"train:{name}", {"recipe": usual | recipe}, {}, ())


def chop(name: str) -> Job:
    return Job(f"chop:{name}", {}, {}, ())


def test_what_comes_after_a_job_counts_along_the_longest_chain():
    jobs = {job.name: job for job in (train("a"), chop("a"), chop("a@mini"), chop("b"))}
    needs = {"train:a": [], "chop:a": ["train:a"], "chop:a@mini": ["train:a"], "chop:b": ["chop:a"]}
    seconds = {"train:a": 100.0, "chop:a": 2.0, "chop:a@mini": 4.0, "chop:b": 3.0}
    assert urgencies(jobs, needs, seconds) == {"train:a": 105, "chop:a": 5, "chop:a@mini": 4, "chop:b": 3}


def test_what_was_never_built_is_taken_from_others_of_its_stage_by_the_images_that_they_see():
    jobs = {job.name: job for job in (train("a"), train("b", max_train_steps=40), chop("a"), chop("b"))}
    found = urgencies(jobs, {name: [] for name in jobs}, {"train:a": 100.0, "chop:a": 2.0})
    assert found == {"train:a": 100, "train:b": 400, "chop:a": 2, "chop:b": 2}
    first = urgencies(jobs, {name: [] for name in jobs}, {})
    assert first["train:b"] > first["train:a"] > 0


def in_turn(enter: Any, names: dict[str, float], waiting: Any) -> list[str]:
    """The order in which these get the one place that is held while they queue up, in the order of the names."""
    order: list[str] = []

    def wait(name: str) -> None:
        with enter(names[name]):
            order.append(name)

    threads = []
    with enter(0.0):
        for number, name in enumerate(names, 1):
            threads.append(threading.Thread(target=wait, args=(name,)))
            threads[-1].start()
            deadline = time.monotonic() + 60
            while len(waiting()) < number and time.monotonic() < deadline:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    return order


WAITING = {"short": 1.0, "long": 9.0, "middle": 5.0, "middle too": 5.0, "shortest": 0.5}
LONGEST_FIRST = ["long", "middle", "middle too", "short", "shortest"]


def test_the_most_urgent_gets_the_slot_and_of_equals_the_first():
    slots = Slots(2, 1, lambda: ["0", "1"])
    with slots.place("gpu"):  # the other slot is what they wait for
        assert in_turn(lambda u: slots.place("gpu", urgency=lambda: u), WAITING, lambda: slots._line) == LONGEST_FIRST


def test_with_one_gpu_jobs_go_as_they_come_and_nobody_asks_how_urgent_they_are():
    slots = Slots(1, 1, lambda: ["0"])
    asked: list[float] = []

    def enter(urgency: float) -> Any:
        return slots.place("gpu", urgency=lambda: asked.append(urgency) or urgency)  # type: ignore[func-returns-value]

    assert in_turn(enter, WAITING, lambda: slots._line) == [*WAITING] and not asked


def test_who_waits_for_more_than_there_is_keeps_no_other_one_waiting():
    slots = Slots(2, 1, lambda: ["0", "1"])
    with slots.place("gpu") as first:
        waiter = threading.Thread(target=lambda: slots.place("gpu", 2, lambda: 99.0).__enter__(), daemon=True)
        waiter.start()
        while not slots._line:
            time.sleep(0.001)
        with slots.place("gpu", urgency=lambda: 1.0) as second:
            assert {first.device, second.device} == {"0", "1"}
    waiter.join(60)
    assert not waiter.is_alive()


def away(jobs: int, stopped: Any = bool) -> Away:
    unused: Any = SimpleNamespace()
    return Away(
        open=unused,
        kind="slurm",
        needs=SimpleNamespace(jobs=jobs),  # type: ignore[arg-type]
        remote=unused,
        sender=SimpleNamespace(left=None),  # type: ignore[arg-type]
        handles=unused,
        logs=unused,
        kept_logs={},
        begins_no_more=stopped,
    )


def test_the_most_urgent_is_sent_away_first():
    one = away(1)
    assert in_turn(one.turn, WAITING, lambda: one._line) == LONGEST_FIRST
    with one.turn():  # all turns were given back
        pass


def test_who_waits_for_a_turn_hears_that_the_build_stops():
    one = away(1)
    with one.turn():
        threading.Timer(0.05, one.leave).start()
        with pytest.raises(Interrupted), one.turn():
            pass
    assert not one._line
