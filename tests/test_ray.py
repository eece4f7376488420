"""Jobs on Ray, without a cluster: what runs on a node, and what is said where there is nothing to run on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabuild import __version__
from lorabuild.errors import JobError
from lorabuild.executors import ray_link, ray_node
from lorabuild.executors.protocol import Resources, Status
from lorabuild.executors.rays import Rays, executor

WORKER = [sys.executable, str(Path(__file__).with_name("standin_worker.py"))]
NODE = {"CPU": 8.0, "GPU": 1.0, "memory": 32e9, "node:10.0.0.2": 1.0}
ASKED = {"gpus": 1, "cpus": 4, "memory_gb": 24}


def begin(*steps: str, gpus: int = 0, minutes: float = 0, version: str = __version__) -> ray_node.NodeJob:
    return ray_node.NodeJob(json.dumps({"steps": steps}), WORKER, gpus, minutes, version)


def until(true: Callable[[], object], seconds: float = 60) -> object:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)
    return found


def lives(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_nodes_job_tells_its_events_and_its_log_as_they_come(tmp_path: Path):
    job = begin(str(tmp_path / "go"))
    until(lambda: job.look(0)["events"])
    told = job.look(0)
    assert [one["event"] for one in told["events"]] == ["progress"] and not told["over"]
    assert told["log"] == "on the side\n"  # what a library prints among the events is passed over
    (tmp_path / "go").touch()
    until(lambda: job.look(0)["over"])
    assert [one["event"] for one in job.look(0)["events"]] == ["progress", "done"]
    assert [one["event"] for one in job.look(1)["events"]] == ["done"]
    assert job.look(2)["events"] == [] and job.look(2)["how"] == ""
    until(lambda: not job._folder.exists())


def test_a_worker_that_is_killed_takes_its_children_along_and_says_how_it_ended():
    job = begin("child", "die")
    until(lambda: job.look(0)["over"])
    told = job.look(0)
    assert "without a last word: signal SIGKILL" in told["how"]
    child = int(told["events"][1]["text"])
    until(lambda: not lives(child))


def test_a_stop_lets_the_worker_keep_its_state_and_ends_who_does_not_listen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_node, "GRACE_SECONDS", 0.3)
    kept = begin("/nowhere")
    until(lambda: kept.look(0)["events"])
    kept.stop()
    until(lambda: kept.look(0)["over"])
    assert kept.look(0)["events"][-1] == {"event": "stopped", "kept": "step 3"}
    deaf = begin("deaf", "/nowhere")
    until(lambda: len(deaf.look(0)["events"]) == 2)
    deaf.stop()
    until(lambda: deaf.look(0)["over"])
    assert "SIGKILL" in deaf.look(0)["how"]


def test_the_last_event_is_told_when_the_process_is_gone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_node, "EXIT_SECONDS", 1.0)
    monkeypatch.setattr(ray_node, "GRACE_SECONDS", 0.1)
    job = begin("deaf", "slow exit")
    until(lambda: len(job._events) == 3)
    told = job.look(0)
    assert [one["event"] for one in told["events"]] == ["progress", "warn"] and not told["over"]
    until(lambda: job.look(0)["over"])
    assert job.look(2)["events"][0]["event"] == "done" and not lives(job.look(0)["events"][0]["pid"])


def test_a_job_whose_time_is_over_is_stopped():
    job = begin("/nowhere", minutes=1 / 60)
    until(lambda: job.look(0)["over"])
    assert job.look(0)["events"][-1] == {"event": "stopped", "kept": "step 3"}


def test_a_nodes_job_does_not_outlive_the_actor_that_runs_it():
    code = (
        "import sys, time; from test_ray import begin, until; job = begin('child', '/nowhere');"
        "until(lambda: len(job.look(0)['events']) == 2); told = job.look(0)['events'];"
        "print(told[0]['pid'], told[1]['text'], job._folder, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as actor:
        assert actor.stdout is not None
        worker, child, folder = actor.stdout.readline().split()
        assert lives(int(worker)) and lives(int(child))
        actor.send_signal(signal.SIGKILL)
    until(lambda: not lives(int(worker)) and not lives(int(child)))
    until(lambda: not Path(folder).exists())


def test_a_job_without_gpus_sees_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as Ray sets it for who has asked for one
    for gpus, seen in ((0, ""), (1, "3")):
        job = begin(gpus=gpus)
        until(lambda job=job: job.look(0)["over"])
        assert job.look(0)["events"][0]["CUDA_VISIBLE_DEVICES"] == seen


def test_a_node_with_another_lorabuild_says_so():
    job = begin(version="0.0.1")
    told = job.look(0)
    assert told["over"] and told["events"][0]["event"] == "failed"
    assert f"has lorabuild {__version__}, this machine 0.0.1" in told["events"][0]["lines"][0]


@pytest.mark.parametrize(
    ("nodes", "line"),
    [
        ({"10.0.0.2": NODE}, ""),
        ({"10.0.0.2": {"CPU": 8.0}, "10.0.0.3": NODE}, ""),
        (
            {"10.0.0.2": {"CPU": 8.0, "memory": 32e9}},
            "no node has 1 GPU, as [executor] gpus asks for; its nodes: 10.0.0.2 (0 GPUs, 8 CPUs, 32 GB of memory)",
        ),
        (
            {"10.0.0.2": {"CPU": 8.0, "memory": 32e9}, "10.0.0.3": {"CPU": 1.0, "GPU": 2.0, "memory": 32e9}},
            "no node has 1 GPU, 4 CPUs, 24 GB of memory, as [executor] gpus, cpus, memory_gb ask for at once; its nodes: "
            "10.0.0.2 (0 GPUs, 8 CPUs, 32 GB of memory), 10.0.0.3 (2 GPUs, 1 CPU, 32 GB of memory)",
        ),
        ({f"10.0.0.{number}": {"CPU": 4.0, "GPU": 1.0, "memory": 8e9} for number in range(9)}, " and 5 more"),
    ],
)
def test_what_no_node_has_is_named(nodes: dict[str, dict[str, float]], line: str):
    said = ray_link.missing(ASKED, nodes)
    assert said.endswith(line) and bool(said) == bool(line)
    assert len(line) < 30 or said == line


def test_a_handle_tells_a_later_driver_what_the_job_waits_for():
    handle = ray_link.named("train/0123/89ab", {"gpus": 1, "cpus": 4, "memory_gb": 1.5})
    assert handle == "train/0123/89ab/1/4/1.5"
    assert ray_link.demanded(handle) == {"gpus": 1, "cpus": 4, "memory_gb": 1.5}


def spec(*steps: str, key: str = "k", **more: object) -> dict[str, object]:
    return {"stage": "train", "key": key, "record": key, "store": "file:///nowhere", "steps": steps, **more}


def test_no_cluster_is_one_line_within_seconds(tmp_path: Path):
    begun = time.monotonic()
    rays = executor({"ray": {"address": "127.0.0.2:9"}}, tmp_path)
    line = r"^no Ray cluster at 127.0.0.2:9: Connection refused \(\[executor.ray\] address\)$"
    with pytest.raises(JobError, match=line):
        rays.submit(spec(), Resources())
    assert time.monotonic() - begun < 20


def test_without_ray_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ray.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    with pytest.raises(JobError, match=r"pip install 'lorabuild\[ray\]'"):
        Rays("auto", tmp_path / "log").submit(spec(), Resources())


def told_by(rays: Rays, handle: str, state: str, seconds: float = 60) -> tuple[Status, list]:
    """Poll until the job is in a state: the last status, and all events on the way."""
    events: list = []

    def there() -> Status | None:
        status = rays.poll(handle)
        events.extend(status.events)
        assert status.state in (state, "waiting", "running"), status
        return status if status.state == state else None

    return until(there, seconds), events
