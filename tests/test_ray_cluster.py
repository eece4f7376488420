"""Jobs on a Ray cluster of two nodes on loopback: they run, are found again, end when they should, and outlive a node."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import HEAD, OTHER, Cluster, cluster
from test_ray import WORKER, lives, spec, told_by, until

from lorabuild.errors import JobError
from lorabuild.executors.protocol import Resources
from lorabuild.executors.rays import Rays

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is no address elsewhere"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture
def on(nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for name, value in nodes.environment.items():
        monkeypatch.setenv(name, value)
    return nodes


@pytest.fixture
def rays(on: Cluster, tmp_path: Path) -> Iterator[Rays]:
    made = Rays(on.address, tmp_path / "ray.log", WORKER)
    yield made
    made._end_link()


def test_a_job_tells_its_events_as_they_come_and_a_later_driver_finds_it(rays: Rays, on: Cluster, tmp_path: Path):
    job = spec(str(tmp_path / "go"), key="found")
    handle = rays.submit(job, Resources())
    status, events = told_by(rays, handle, "running")
    while not events:
        events += rays.poll(handle).events
    assert events[0]["text"] == "pid" and status.text in (f"on {HEAD}", f"on {OTHER}")
    until(lambda: rays.poll(handle) and rays.logs(handle) == "on the side\n")
    os.kill(rays._link.pid, signal.SIGKILL)  # Ray ends it so when its head is gone for a minute
    told_by(rays, handle, "running")

    later = Rays(on.address, tmp_path / "later.log", WORKER)
    assert later.submit(job, Resources()) == handle  # it has not begun another one
    (tmp_path / "go").touch()
    _, all_events = told_by(later, handle, "ended")
    assert [one["event"] for one in all_events] == ["progress", "done"]
    assert all_events[0] == events[0]
    until(lambda: rays.poll(handle).state in ("ended", "lost"))  # in time or not: nobody waits for ever
    later._end_link()


def test_a_worker_that_is_killed_is_lost_and_can_be_begun_again(rays: Rays):
    handle = rays.submit(spec("child", "die", key="killed"), Resources())
    status, events = told_by(rays, handle, "lost")
    assert "without a last word: signal SIGKILL" in status.text
    assert rays.logs(handle) == "on the side\n"
    until(lambda: not lives(int(events[1]["text"])))
    assert rays.submit(spec(key="killed"), Resources()) == handle
    _, events = told_by(rays, handle, "ended")
    assert events[-1]["event"] == "done"


def test_an_actor_that_is_killed_takes_its_worker_along(rays: Rays, on: Cluster):
    handle = rays.submit(spec("child", "/nowhere", key="actor"), Resources())
    events: list = []
    until(lambda: events.extend(rays.poll(handle).events) or len(events) == 2)
    worker = events[0]["pid"]
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert "RayJob" in on.processes()[parent]
    os.kill(parent, signal.SIGKILL)
    status, _ = told_by(rays, handle, "lost")
    assert "is there, the job is not" in status.text
    until(lambda: not lives(worker) and not lives(int(events[1]["text"])))


def test_what_no_node_has_is_one_line_at_once(rays: Rays, on: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    line = (
        r"^Ray cluster 127.0.0.2:\d+: no node has 1 GPU, as \[executor\] gpus asks for; its nodes: 127.0.0.2 \(0 GPUs, "
    )
    with pytest.raises(JobError, match=line):
        rays.submit(spec(key="gpu"), Resources(gpus=1))
    monkeypatch.setenv("RAY_ADDRESS", on.address)
    found = Rays("auto", tmp_path / "auto.log")
    with pytest.raises(
        JobError, match=r"auto: no node has 2 CPUs, 9000 GB of memory, as \[executor\] cpus, memory_gb ask for;"
    ):
        found.submit(spec(key="cpu"), Resources(cpus=2, memory_gb=9000))
    found._end_link()


def test_who_is_stopped_keeps_its_state_and_who_waits_leaves_the_queue(rays: Rays):
    running = [rays.submit(spec("/nowhere", key=key), Resources()) for key in ("one", "two")]
    for handle in running:
        told_by(rays, handle, "running")
    waiting = rays.submit(spec("/nowhere", key="three"), Resources())
    status = rays.poll(waiting)
    assert (status.state, status.text) == ("waiting", "for 1 CPU")
    rays.cancel(waiting)
    assert rays.poll(waiting).state == "lost"
    for handle in running:
        rays.cancel(handle)
        _, events = told_by(rays, handle, "ended")
        assert events[-1] == {"event": "stopped", "kept": "step 3"}
        rays.cancel(handle)  # nothing any more
    told_by(rays, rays.submit(spec(key="four"), Resources()), "ended")  # the processors are free again


def test_a_job_whose_node_is_lost_is_done_by_another(rays: Rays, on: Cluster):
    until(lambda: not any("RayJob" in one for one in on.processes().values()))
    jobs = [spec("/nowhere", key=f"node{number}") for number in range(2)]
    where: dict[str, tuple[str, int]] = {}
    for job in jobs:
        handle = rays.submit(job, Resources())
        status, events = told_by(rays, handle, "running")
        while not events:
            events += rays.poll(handle).events
        where[rays.poll(handle).text] = handle, events[0]["pid"]
    assert set(where) == {f"on {HEAD}", f"on {OTHER}"}
    try:
        on.kill(OTHER)
        handle, pid = where[f"on {OTHER}"]
        status, _ = told_by(rays, handle, "lost", 120)
        assert status.text == f"node {OTHER} is gone"
        assert rays.logs(handle) == "on the side\n" and not lives(pid)
        rays.cancel(where[f"on {HEAD}"][0])
        again = rays.submit(spec(key="node0" if "node0" in handle else "node1"), Resources())
        _, events = told_by(rays, again, "ended")
        assert events[0]["LORABUILD_TEST_CLUSTER"].endswith(HEAD)
    finally:
        on.kill(OTHER)
        on.start(OTHER)
