"""Ctrl-C and SIGTERM keep what there is and leave nothing running; neither does the sudden death of the driver."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from standin import DODO, Stage
from world import LONGER, World

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals and process groups of POSIX")

PATIENCE = 120  # seconds: whatever else the machine does, only what hangs takes longer
GRACE = "import lorabuild.workers.interrupts\nlorabuild.workers.interrupts.GRACE_SECONDS = {}\n"


@pytest.fixture(autouse=True)
def interrupts_are_heeded():
    """What runs in a shell's background ignores Ctrl-C, and all that it starts does, too: a test may run there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(driver: subprocess.Popen[str]) -> str:
    """What the build has printed at its end. It was interrupted."""
    out, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130, out
    assert "Traceback" not in out
    return out


def gone(stage: Stage) -> bool:
    """Whether nothing that the build has started is left: by itself it would last ten minutes."""
    deadline = time.monotonic() + PATIENCE
    while stage.survivors():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def whole(world: World) -> bool:
    """No half-written file stands in build/, and what stands there is known."""
    left = [path for path in world.root.glob("build/**/*") if path.is_file()]
    return all(not path.name.startswith(".") and path.suffix != ".part" for path in left)


# once


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("jobs", [(), ("-n", "4"), ("-n", "4", "--continue")], ids=" ".join)
def test_once_a_training_keeps_its_state_and_the_next_build_goes_on(tmp_path: Path, number: int, jobs: tuple[str, ...]):
    stage = Stage(tmp_path, 2, "gpu = 2", train_p0="train 400", train_p1="train 400")
    driver = stage.start(*jobs)
    trainings = 2 if jobs else 1
    while len(stage.lines("trains")) < trainings:
        time.sleep(0.02)
        assert driver.poll() is None
    driver.send_signal(number)
    out = ended(driver)
    kept = re.findall(r"(train:p\d) at step (\d+) of 400", out.splitlines()[-1])
    assert len(kept) == trainings and all(int(step) > 0 for _, step in kept)
    assert out.splitlines()[-1].endswith("`doit` goes on from there")
    assert "FAILED" not in out and gone(stage) and whole(stage.world)

    stage.plan(train_p0="train 5", train_p1="train 5")
    result = stage.doit()
    assert result.code == 0
    resumed = {event["job"]: str(event.get("resumed_at")) for event in result.events}
    assert {job: resumed[job] for job, _ in kept} == dict(kept)
    assert "base:tiny" not in result.ran


def test_other_jobs_end_at_once_with_all_that_they_have_started(tmp_path: Path):
    stage = Stage(tmp_path, 1, norms_tiny="hang")
    stage.world.write("dodo.py", DODO + GRACE.format(600))  # what waited for the end of that would not end here
    driver = stage.start()
    stage.wait_for("hangs")
    assert len(stage.survivors()) >= 3
    driver.send_signal(signal.SIGINT)
    assert "1 built" in ended(driver).splitlines()[-1]
    assert gone(stage)
    stage.plan()
    assert stage.doit().code == 0


def test_a_job_that_never_stops_has_a_time_of_grace(tmp_path: Path):
    stage = Stage(tmp_path, 1, train_p0="deaf")
    stage.world.write("dodo.py", DODO + GRACE.format(1.0))
    driver = stage.start("-n", "2")
    stage.wait_for("hangs")
    driver.send_signal(signal.SIGTERM)
    assert "within 1 s" in ended(driver)
    assert gone(stage)


def test_a_build_that_is_interrupted_says_what_failed_before(tmp_path: Path):
    stage = Stage(tmp_path, 2, "gpu = 2", train_p0="fail", train_p1="train 400")
    driver = stage.start("-n", "4", "--continue")
    while not (log := stage.world.latest()) or '"failed"' not in log.read_text():
        time.sleep(0.02)
        assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    assert any(line.startswith("failed: train:p0: step 3") for line in ended(driver).splitlines())


def uploads_slowly(stage: Stage, tmp_path: Path) -> None:
    stage.world.write("lorabuild.local.toml", f'[store]\nremote = "file://{tmp_path}/remote"\n')
    slow = "import time, lorabuild.remotes.remote\nlorabuild.remotes.remote.Remote.put = lambda *_: time.sleep(600)\n"
    stage.world.write("dodo.py", DODO + slow + GRACE.format(600))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_while_it_waits_for_uploads_a_build_is_interrupted(tmp_path: Path, number: int):
    stage = Stage(tmp_path, 1)
    uploads_slowly(stage, tmp_path)
    driver = stage.start()
    while "uploading to file://" not in (line := driver.stdout.readline()):
        assert line, "the build has ended"
    assert not stage.survivors()  # the workers have let go of memory and GPU by now
    driver.send_signal(number)
    assert "interrupted" in ended(driver)


def test_a_build_that_is_interrupted_waits_for_no_upload(tmp_path: Path):
    stage = Stage(tmp_path, 1, train_p0="train 400")
    uploads_slowly(stage, tmp_path)
    driver = stage.start()
    while not any(line["job"] == "train:p0" for line in stage.lines("begin")):
        time.sleep(0.02)
        assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    assert "uploading" not in ended(driver)
    assert gone(stage)


def test_while_it_waits_for_the_lock_a_build_is_interrupted(tmp_path: Path):
    from filelock import FileLock

    stage = Stage(tmp_path, 1)
    (stage.world.root / ".lorabuild").mkdir()
    with FileLock(stage.world.root / ".lorabuild/lock"):
        driver = stage.start()
        assert "waiting" in driver.stdout.readline()
        driver.send_signal(signal.SIGTERM)
        ended(driver)


def test_what_was_told_to_ignore_ctrl_c_ignores_it(tmp_path: Path):
    stage = Stage(tmp_path, 1, train_p0="sleep 1")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `nohup` does for SIGHUP: children inherit it
    try:
        driver = stage.start()
    finally:
        signal.signal(signal.SIGINT, before)
    stage.wait_for("begin", 4)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0


WAITER = """
import queue
from lorabuild.workers.interrupts import stoppable

class Build:
    def __init__(self): self.stopped = queue.Queue()
    def stop(self): self.stopped.put(True)
    def say(self, text): pass
    kill = close = stop

for _ in range(3000):
    build = Build()
    with stoppable(build) as heard:
        print("waits", flush=True)
        build.stopped.get()  # a signal that comes as this begins does not wake it
    assert heard.signalled
"""


def test_no_signal_is_lost_however_it_meets_the_main_thread():
    waiter = subprocess.Popen([sys.executable, "-c", WAITER], stdout=subprocess.PIPE)
    try:
        for _ in range(3000):
            assert waiter.stdout.readline() == b"waits\n"
            waiter.send_signal(signal.SIGINT)
        assert waiter.wait(PATIENCE) == 0
    finally:
        waiter.kill()
        waiter.stdout.close()


# twice


@pytest.mark.parametrize("jobs", [(), ("-n", "4")], ids=" ".join)
def test_twice_ends_everything_at_once(tmp_path: Path, jobs: tuple[str, ...]):
    stage = Stage(tmp_path, 1, train_p0="deaf")
    stage.world.write("dodo.py", DODO + GRACE.format(600))
    driver = stage.start(*jobs)
    stage.wait_for("hangs")
    driver.send_signal(signal.SIGINT)
    while "once more ends everything" not in (line := driver.stdout.readline()):
        assert line, "the build has ended"
    assert stage.survivors()
    driver.send_signal(signal.SIGINT)
    ended(driver)
    assert gone(stage) and whole(stage.world)
    stage.plan()
    assert stage.doit().code == 0


@pytest.mark.parametrize("jobs", [(), ("-n", "4")], ids=" ".join)
def test_a_build_whose_output_nobody_reads_ends_all_the_same(tmp_path: Path, jobs: tuple[str, ...]):
    stage = Stage(tmp_path, 1, train_p0="chatter 3000")
    driver = stage.start(*jobs)
    stage.wait_for("begin", 4)
    time.sleep(1)  # the pipe is full
    driver.send_signal(signal.SIGINT)
    time.sleep(0.2)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(PATIENCE) == 130  # two signals that come as one have the time of grace
    driver.stdout.close()
    assert gone(stage)


# the driver's death


@pytest.mark.parametrize("what", ["hang", "deaf", "train 400"])
def test_nothing_survives_a_driver_that_is_killed(tmp_path: Path, what: str):
    stage = Stage(tmp_path, 1, train_p0=what)
    driver = stage.start("-n", "2")
    stage.wait_for("begin", 4)
    time.sleep(0.5)
    assert stage.survivors()
    driver.kill()
    driver.communicate()
    assert gone(stage)


@pytest.mark.parametrize("what", ["crash", "orphan"])
def test_nothing_survives_a_worker_that_dies(tmp_path: Path, what: str):
    stage = Stage(tmp_path, 1, train_p0=what, norms_tiny="sleep 0.1")
    result = stage.doit("-n", "4", "--continue")
    assert result.code == 1 and "signal SIGKILL" in result.out
    assert gone(stage)


# with a real training


@pytest.mark.slow
def test_an_interrupted_training_ends_in_the_same_bytes(built: World, straight: World):
    stopped = built
    stopped.manifest(**LONGER)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "doit"]
    driver = subprocess.Popen(
        command, cwd=stopped.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    deadline = time.monotonic() + PATIENCE
    while not any(path.is_file() for path in stopped.root.glob(".lorabuild/scratch/*/scratch/*")):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    out = ended(driver)
    kept = re.search(r"train:ember at step (\d+) of 12", out)
    assert kept, out
    result = stopped.doit()
    (train,) = (event for event in result.events if event["job"] == "train:ember")
    assert train["resumed_at"] == int(kept[1]) > 0
    assert stopped.built_files() == straight.built_files()
