"""Whole builds through submitit's local executor: real processes, real files through a store, the same artifacts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_world import FakeSlurm, processes_with, stood_in
from standin import Stage
from world import HEAVY, LONGER, World

from lorabuild.ahead import cores

PATIENCE_S = 240

SETTINGS = """\
[store]
remote = "file://{root}/remote"
[executor]
kind = "slurm"
gpus = 0
cpus = {cpus}
minutes = 30
cache = "{root}/node"
{more}
[executor.slurm]
cluster = "local"
signal_delay_s = 30
"""


def through_slurm(world: World, more: str = "") -> World:
    """Its heavy jobs go through submitit from now on. As many threads as it has on this machine: bytes depend on them."""
    root = world.root.parent
    world.write("lorabuild.local.toml", SETTINGS.format(root=root, cpus=max(1, cores() // 2), more=more))
    return world


@pytest.fixture(autouse=True)
def nothing_runs_on(tmp_path: Path) -> Iterator[None]:
    yield
    for pid in processes_with(f"{tmp_path}/"):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def jobs(world: World, name: str) -> list[Path]:
    return sorted((world.root / ".lorabuild/slurm").glob(f"{name}-*"))


def wait_for(reached: Callable[[], object], driver: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end
        assert driver is None or driver.poll() is None, driver.communicate()
        time.sleep(0.02)


def at_step(world: World, step: int) -> bool:
    """Whether the training has come so far, by the events of its job."""
    said = "".join(path.read_text() for job in jobs(world, "train-ember") for path in job.glob("events-*"))
    return any(int(done) >= step for done in re.findall(r'"done": (\d+), "total": 12', said))


# with stand-ins of the stages


def test_jobs_go_through_submitit_and_come_to_the_same(tmp_path: Path):
    here = Stage(tmp_path / "here")
    assert here.doit().code == 0
    there = Stage(tmp_path / "there")
    through_slurm(there.world, 'stages = ["spectrum", "chop"]')
    result = there.doit()
    assert result.code == 0, result.out + result.err
    assert [len(jobs(there.world, name)) for name in ("spectrum-p0", "chop-p0", "train-p0")] == [1, 1, 0]
    assert there.world.built_files() == here.world.built_files()
    assert there.doit().events == []


def test_a_driver_that_was_killed_finds_its_job(tmp_path: Path):
    stage = Stage(tmp_path, chop_p0=" 4")
    through_slurm(stage.world, 'stages = ["chop"]')
    driver = stage.start()
    wait_for(lambda: any(line["job"] == "chop:p0" for line in stage.lines("begin")), driver)
    os.killpg(driver.pid, signal.SIGKILL)  # all that hangs on its terminal
    driver.wait()
    result = stage.doit()
    assert result.code == 0, result.out + result.err
    assert len(jobs(stage.world, "chop-p0")) == 1
    assert sum(line["job"] == "chop:p0" for line in stage.lines("begin")) == 1


def test_a_worker_that_is_killed_is_begun_again(tmp_path: Path):
    stage = Stage(tmp_path, chop_p0=" 30")
    through_slurm(stage.world, 'stages = ["chop"]')
    driver = stage.start()
    wait_for(lambda: any(line["job"] == "chop:p0" for line in stage.lines("begin")), driver)
    stage.plan()
    (job,) = jobs(stage.world, "chop-p0")
    (worker,) = processes_with(f"lorabuild.worker {job}")
    os.kill(worker, signal.SIGKILL)
    out, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, out
    assert "begun again, 2 of 3" in out
    assert len(jobs(stage.world, "chop-p0")) == 2


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    with stood_in(tmp_path, monkeypatch) as world:
        yield world


@pytest.fixture
def slurm(cluster: FakeSlurm, tmp_path: Path) -> Stage:
    """A repository whose chops go to a Slurm of stand-ins."""
    stage = Stage(tmp_path / "stage")
    through_slurm(stage.world, 'stages = ["chop"]')
    settings = stage.world.root / "lorabuild.local.toml"
    settings.write_text(settings.read_text().replace('cluster = "local"', 'partition = "gpu"'))
    return stage


def test_a_build_says_why_its_job_waits(slurm: Stage, cluster: FakeSlurm):
    (cluster.slurm / "hold").touch()
    driver = slurm.start()
    assert driver.stdout is not None
    said = []
    for line in driver.stdout:  # ends with the driver
        said.append(line)
        if "PENDING (Priority)" in line:
            (cluster.slurm / "hold").unlink()
    assert driver.wait() == 0 and any("PENDING" in line for line in said), said
    assert "--partition=gpu\n" in (cluster.slurm / "job-4242/script").read_text()


def test_a_job_that_slurm_does_not_take_fails_in_one_line(slurm: Stage, cluster: FakeSlurm):
    (cluster.slurm / "reject").write_text(
        "sbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job …\n"
    )
    result = slurm.doit()
    assert result.code == 1 and "Traceback" not in result.out + result.err
    assert "chop:p0 FAILED: sbatch: invalid partition specified: gpu\n" in result.out
    assert "begun again" not in result.out + result.err
    (cluster.slurm / "reject").unlink()
    assert slurm.doit().ran == {"chop:p0": "built"}


# with real ones


@pytest.mark.slow
def test_the_same_repository_gives_the_same_bytes_and_the_driver_imports_no_torch(built_once: World, tmp_path: Path):
    shutil.copytree(built_once.root, tmp_path / "clone", ignore=shutil.ignore_patterns(".lorabuild", "build"))
    clone = through_slurm(World(tmp_path / "clone"))
    result = clone.doit(PYTHONPROFILEIMPORTTIME="1")
    assert result.code == 0 and "latents:ember" in result.built and "train:ember" in result.built, result.out
    imported = {line.rpartition("|")[2].strip() for line in result.err.splitlines() if "import time:" in line}
    assert "lorabuild.engine" in imported and not imported & set(HEAVY)
    assert len(jobs(clone, "train-ember")) == 1
    assert clone.built_files() == built_once.built_files()
    assert clone.doit().events == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["requeued", "killed"])
def test_a_training_that_is_stopped_on_its_node_ends_in_the_same_bytes(built: World, straight: World, how: str):
    world = through_slurm(built)
    world.manifest(**LONGER)
    driver = subprocess.Popen(
        ["doit"],
        cwd=world.root,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: at_step(world, 3), driver)
    (job,) = jobs(world, "train-ember")
    (worker,) = processes_with(f"lorabuild.worker {job}")
    task = [pid for pid in processes_with(f"submitit.core._submit {job}") if pid != worker]
    if how == "requeued":
        os.kill(task[0], signal.SIGUSR2)  # what Slurm does before the time limit
    else:
        for pid in processes_with(str(job)):
            os.kill(pid, signal.SIGKILL)
    out, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, out
    attempts = [path for job in jobs(world, "train-ember") for path in job.glob("events-*")]
    assert len(attempts) == 2
    assert len(jobs(world, "train-ember")) == (1 if how == "requeued" else 2)
    (train,) = (event for event in world.log() if event["job"] == "train:ember" and event["event"] == "built")
    if how == "requeued":
        assert train["resumed_at"] >= 3
    assert world.built_files() == straight.built_files()
