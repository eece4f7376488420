"""Jobs on a Ray cluster of two nodes on loopback: they run, are found again, end when they should, and outlive a node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import CPUS, HEAD, OTHER, Cluster, cluster
from test_ray import WORKER, lives, spec, told_by, until
from world import HEAVY, LONGER, World

from lorabuild.errors import JobError
from lorabuild.executors.protocol import Resources, Status
from lorabuild.executors.rays import Rays

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is no address elsewhere"),
]
ONE = Resources(cpus=CPUS)  # takes a whole node

SETTINGS = """\
[store]
remote = "file://{remote}"
[executor]
kind = "ray"
gpus = 0
cpus = {cpus}
[executor.ray]
address = "{address}"
"""


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
    handle = rays.submit(job, ONE)
    status, events = told_by(rays, handle, "running")
    while not events:
        events += rays.poll(handle).events
    assert events[0]["text"] == "pid" and status.text in (f"on {HEAD}", f"on {OTHER}")
    until(lambda: rays.poll(handle) and rays.logs(handle) == "on the side\n")
    os.kill(rays._link.pid, signal.SIGKILL)  # Ray ends it so when its head is gone for a minute
    told_by(rays, handle, "running")

    later = Rays(on.address, tmp_path / "later.log", WORKER)
    assert later.submit(job, ONE) == handle  # it has not begun another one
    (tmp_path / "go").touch()
    _, all_events = told_by(later, handle, "ended")
    assert [one["event"] for one in all_events] == ["progress", "done"]
    assert all_events[0] == events[0]
    until(lambda: rays.poll(handle).state in ("ended", "lost"))  # in time or not: nobody waits for ever
    later._end_link()


def test_a_worker_that_is_killed_is_lost_and_can_be_begun_again(rays: Rays):
    handle = rays.submit(spec("child", "die", key="killed"), ONE)
    status, events = told_by(rays, handle, "lost")
    assert "without a last word: signal SIGKILL" in status.text
    assert rays.logs(handle) == "on the side\n"
    until(lambda: not lives(int(events[1]["text"])))
    assert rays.submit(spec(key="killed"), ONE) == handle
    _, events = told_by(rays, handle, "ended")
    assert events[-1]["event"] == "done"


def test_an_actor_that_is_killed_takes_its_worker_along(rays: Rays, on: Cluster):
    handle = rays.submit(spec("child", "/nowhere", key="actor"), ONE)
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
        rays.submit(spec(key="gpu"), Resources(gpus=1, cpus=CPUS))
    monkeypatch.setenv("RAY_ADDRESS", on.address)
    found = Rays("auto", tmp_path / "auto.log")
    with pytest.raises(
        JobError, match=r"auto: no node has 999 CPUs, 9000 GB of memory, as \[executor\] cpus, memory_gb ask for;"
    ):
        found.submit(spec(key="cpu"), Resources(cpus=999, memory_gb=9000))
    found._end_link()


def test_who_is_stopped_keeps_its_state_and_who_waits_leaves_the_queue(rays: Rays):
    running = [rays.submit(spec("/nowhere", key=key), ONE) for key in ("one", "two")]
    for handle in running:
        begun(rays, handle)
    waiting = rays.submit(spec("/nowhere", key="three"), ONE)
    status = rays.poll(waiting)
    assert (status.state, status.text) == ("waiting", f"for {CPUS} CPU" + "s" * (CPUS > 1))
    rays.cancel(waiting)
    assert rays.poll(waiting).state == "lost"
    for handle in running:
        rays.cancel(handle)
        _, events = told_by(rays, handle, "ended")
        assert events[-1] == {"event": "stopped", "kept": "step 3"}
        rays.cancel(handle)  # nothing any more
    told_by(rays, rays.submit(spec(key="four"), ONE), "ended")  # the processors are free again


def begun(rays: Rays, handle: str) -> Status:
    """Once the worker itself has spoken: only then does it listen to who stops it."""
    return until(lambda: (status := rays.poll(handle)).events and status)


def through_ray(world: World, on: Cluster, remote: Path) -> World:
    """Its heavy jobs go to the cluster from now on."""
    world.write("lorabuild.local.toml", SETTINGS.format(remote=remote, cpus=CPUS, address=on.address))
    return world


def test_the_same_repository_gives_the_same_bytes_and_the_driver_imports_no_torch(
    built_once: World, on: Cluster, tmp_path: Path
):
    shutil.copytree(built_once.root, tmp_path / "clone", ignore=shutil.ignore_patterns(".lorabuild", "build"))
    clone = through_ray(World(tmp_path / "clone"), on, tmp_path / "remote")
    result = clone.doit(PYTHONPROFILEIMPORTTIME="1")
    assert result.code == 0 and {"latents:ember", "train:ember"} <= result.built, result.out
    imported = {line.rpartition("|")[2].strip() for line in result.err.splitlines() if "import time:" in line}
    assert "lorabuild.executors.away" in imported and not imported & {*HEAVY, "ray"}
    assert (clone.root / ".lorabuild/logs/ray.log").exists()
    assert clone.built_files() == built_once.built_files()
    assert clone.doit().events == []
    until(lambda: not any("RayJob" in one for one in on.processes().values()))


def test_a_training_whose_node_is_lost_ends_on_another_in_the_same_bytes(
    built: World, straight: World, rays: Rays, on: Cluster, tmp_path: Path
):
    world = through_ray(built, on, tmp_path / "remote")
    world.manifest(**LONGER)
    there = dict.fromkeys((HEAD, OTHER), "")
    for number in range(2):  # so that the training begins on the node that is no head
        handle = rays.submit(spec("/nowhere", key=f"fills{number}"), ONE)
        there[begun(rays, handle).text.removeprefix("on ")] = handle
    rays.cancel(there[OTHER])
    told_by(rays, there[OTHER], "ended")
    driver = subprocess.Popen(
        [sys.executable, "-m", "doit"],
        cwd=world.root,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        (note,) = until(lambda: list((world.root / ".lorabuild/jobs").glob("*.json")), 120)
        handle = json.loads(note.read_bytes())["handle"]
        until(lambda: any(event.get("done", 0) >= 3 for event in rays.poll(handle).events), 240)
        assert rays.poll(handle).text == f"on {OTHER}"
        on.kill(OTHER)
        rays.cancel(there[HEAD])
        out, _ = driver.communicate(timeout=300)
    finally:
        driver.kill()
        on.kill(OTHER)
        on.start(OTHER)
    assert driver.returncode == 0, out
    assert f"node {OTHER} is gone (ray {handle}); begun again, 2 of 3" in out and out.count("begun again") == 1
    lines = [(line["job"], line["event"]) for line in world.log()]
    assert (
        len(set(lines)) == len(lines) and ("train:ember", "built") in lines and ("latents:ember", "built") not in lines
    )
    assert world.built_files() == straight.built_files()
