"""Jobs through submitit: Slurm by stand-ins of its programs, and submitit's local executor with real processes."""

from __future__ import annotations

import json
import os
import pickletools
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_standin
from slurm_world import FakeSlurm, World, processes_with, stood_in, until

from lorabuild.errors import JobError
from lorabuild.executors import processes
from lorabuild.executors.attempts import Reader, next_attempt
from lorabuild.executors.clusters import Settings
from lorabuild.executors.protocol import Resources, ending
from lorabuild.executors.sbatch import parameters
from lorabuild.executors.squeue import Row, complaint, row_of_sacct, rows_of_squeue
from lorabuild.workers.slots import cuda_devices


@pytest.fixture
def local(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, {"cluster": "local", "signal_delay_s": 5})
    yield world
    world.end()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    with stood_in(tmp_path, monkeypatch) as world:
        yield world


# -- what Slurm says -----------------------------------------------------------------------------------------------


def test_lines_of_squeue_are_read():
    rows = rows_of_squeue(
        "4242|PENDING|Priority|\n"
        "4243|RUNNING|None|gpu[3-4]\n"
        "4244|PENDING|ReqNodeNotAvail, UnavailableNodes:gpu7|\n"
        "4245_7|PENDING|Resources|\n"  # an array of somebody's
        "slurm_load_jobs: warning\n"
        "4246|CANCELLED|None|\n"
    )
    assert {job: str(row) for job, row in rows.items()} == {
        "4242": "PENDING (Priority)",
        "4243": "RUNNING on gpu[3-4]",
        "4244": "PENDING (ReqNodeNotAvail, UnavailableNodes:gpu7)",
        "4246": "CANCELLED",
    }
    assert [job for job, row in rows.items() if row.over] == ["4246"]


def test_lines_of_sacct_are_read():
    said = "4242|NODE_FAIL|gpu1\n4242|CANCELLED by 1000|gpu3\n4242.batch|CANCELLED|gpu3\n"
    assert row_of_sacct(said, "4242") == Row("CANCELLED", "by 1000", "gpu3")
    assert row_of_sacct("4242|PENDING|None assigned\n", "4242") == Row("PENDING")
    assert row_of_sacct("", "4242") is None


@pytest.mark.parametrize(
    "state", ["COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "NEW_ONE"]
)
def test_a_state_that_is_neither_waiting_nor_running_is_over(state: str):
    assert Row(state).over


def test_what_slurm_complains_of_is_one_line():
    text = "sbatch: lua: hello\nsbatch: error: invalid partition specified: gpux\nsbatch: error: Batch job submission failed: x\n"
    assert complaint(text, "sbatch") == "invalid partition specified: gpux"
    assert complaint("", "sbatch") == "it failed without a word"


# -- what is asked for ---------------------------------------------------------------------------------------------


def test_resources_become_sbatchs_words():
    settings = Settings(partition="gpu", account="lab", qos="long", constraint="a100", setup=["module load cuda"])
    asked = parameters("train:ember", Resources(gpus=2, cpus=8, memory_gb=23.5, minutes=90.2), settings)
    assert asked["time"] == 91
    assert asked["mem"] == "24064M"
    assert (asked["gpus_per_node"], asked["cpus_per_task"]) == (2, 8)
    assert "--cpus-per-task=8" in asked["srun_args"]
    assert [asked[key] for key in ("partition", "account", "qos", "constraint", "setup")] == [
        "gpu",
        "lab",
        "long",
        "a100",
        ["module load cuda"],
    ]
    plain = parameters("chop:ember", Resources(), Settings())
    assert not {"mem", "gpus_per_node", "gres", "partition", "setup"} & set(plain)
    assert plain["time"] == 240


def test_gres_takes_the_place_of_gpus_where_a_job_has_any():
    settings = Settings(gres="gpu:a100:{gpus}", sbatch={"reservation": "lab"})
    asked = parameters("train:ember", Resources(gpus=2), settings)
    assert asked["gres"] == "gpu:a100:2" and "gpus_per_node" not in asked
    assert asked["additional_parameters"] == {"requeue": True, "reservation": "lab"}
    assert "gres" not in parameters("chop:ember", Resources(), settings)


# -- events --------------------------------------------------------------------------------------------------------


def test_events_of_all_attempts_are_read_in_order_and_half_lines_wait(tmp_path: Path):
    reader = Reader(tmp_path)
    first, one = next_attempt(tmp_path)
    one.write(b'hello\n{"event": "progress", "done": 1}\n[1]\n{"event": 7}\n\xff\n{"event": "prog')
    one.flush()
    assert [event["done"] for event in reader.new()] == [1]
    assert reader.new() == []
    second, two = next_attempt(tmp_path)
    assert (first, second) == (1, 2)
    two.write(b'{"event": "progress", "done": 2}\n{"event": "do')
    two.flush()
    assert [event["done"] for event in reader.new()] == [2]  # the first attempt's half line is dead
    two.write(b'ne"}\n')
    two.close()
    assert [event["event"] for event in reader.new()] == ["done"]
    assert [event["event"] for event in Reader(tmp_path).new()] == ["progress", "progress", "done"]
    one.close()


# -- submitit's local executor: real processes ----------------------------------------------------------------------


def test_a_job_runs_to_its_end(local: World):
    handle = local.submit()
    assert local.over(handle).state == "ended"
    assert [event["event"] for event in local.events] == ["progress"] * 6 + ["done"]
    assert (local.store / "result").read_text() == "6 steps\n"
    assert "noise beside the events" in local.executor.logs(handle)
    until(lambda: not processes_with(str(local.folder(handle))))


def test_a_process_here_is_promised_no_gpu_that_is_not_here():
    said = processes._environment("true", 1, Settings(), Resources(gpus=2))
    assert said["CUDA_VISIBLE_DEVICES"] == ",".join(cuda_devices()[:2])


def test_another_driver_finds_the_job_and_hears_all_of_it(local: World):
    handle = local.submit(wait_at=[3])
    local.at_step(handle, 3)
    local.restart()
    local.at_step(handle, 3)
    (local.store / "go-3").touch()
    assert local.over(handle).state == "ended"
    assert [event.get("done") for event in local.events] == [1, 2, 3, 4, 5, 6, None]
    local.restart()  # long after
    assert local.over(handle).state == "ended"
    assert len(local.workers()) == 1


def test_a_time_limit_stops_the_worker_and_the_job_goes_on_from_what_it_kept(local: World):
    handle = local.submit(Resources(minutes=9 / 60), wait_at=[3])  # told after 4 s
    local.at_step(handle, 3)
    until(lambda: (local.store / "state").exists())
    (local.store / "go-3").touch()
    assert local.over(handle).state == "ended"
    assert local.steps() == [1, 2, 3, 4, 5, 6]
    assert len(local.workers()) == 2
    assert [event["event"] for event in local.events] == ["progress"] * 6 + ["done"]  # that it stopped is no end
    local.restart()  # nor is it one for whoever comes later
    local.over(handle)
    assert [event["event"] for event in local.events] == ["progress"] * 6 + ["done"]


def test_a_time_limit_that_is_too_short_to_come_any_further_is_one_line(local: World):
    handle = local.submit(Resources(minutes=8 / 60), wait_at=[1], forgetful=True)
    status = local.over(handle)
    line = "its time limit (0.13 min) is over before it came any further: raise [executor] minutes"
    assert (status.state, ending(status.events)) == ("ended", {"event": "failed", "lines": [line]})
    assert local.steps() == [1, 1]  # once more, as a preemption would look the same; not a third time


def test_a_killed_worker_is_lost_and_the_log_says_why(local: World):
    handle = local.submit(wait_at=[2])
    local.at_step(handle, 2)
    os.kill(local.pid(), signal.SIGKILL)
    assert local.over(handle).state == "lost"
    assert "signal SIGKILL" in local.executor.logs(handle)


def test_a_job_whose_processes_are_killed_leaves_no_worker_and_is_lost(local: World):
    handle = local.submit(wait_at=[2])
    local.at_step(handle, 2)
    worker = local.pid()
    for pid in processes_with(str(local.folder(handle))):
        if pid != worker:
            os.kill(pid, signal.SIGKILL)
    assert local.over(handle).state == "lost"
    until(lambda: not processes_with(str(local.folder(handle))))  # on Linux: the worker went with it


def test_cancel_lets_the_worker_keep_its_state(local: World):
    handle = local.submit(wait_at=[2])
    local.at_step(handle, 2)
    local.executor.cancel(handle)
    status = local.over(handle)
    last = ending(status.events)
    assert (status.state, last["event"], last["kept"]) == ("ended", "stopped", "step 2 of 6")
    assert (local.store / "state").read_text() == "2"
    until(lambda: not processes_with(str(local.folder(handle))))
    local.executor.cancel(handle)  # nothing


def test_jobs_are_no_children_of_the_terminal(local: World):
    handle = local.submit(wait_at=[1])
    local.at_step(handle, 1)
    assert os.getpgid(int(handle.split()[0])) not in (os.getpgrp(), 0)
    assert os.getsid(int(handle.split()[0])) != os.getsid(0)


def test_a_handle_of_a_folder_that_is_gone_is_lost(local: World):
    assert local.executor.poll("4242 train-ember-00000000").state == "lost"
    assert local.executor.poll("nonsense").state == "lost"
    assert local.executor.logs("nonsense") == ""
    (local.root / ".lorabuild/slurm/train-ember-1").mkdir(parents=True)
    assert local.executor.poll(f"{os.getpid()} train-ember-1").state == "lost"  # that number is another process now


def test_the_pickle_is_a_function_of_ours_and_a_path(local: World):
    handle = local.submit(params={"secret": "a word of the user's"})
    local.over(handle)
    folder = local.folder(handle)
    pickled = (folder / f"{handle.split()[0]}_submitted.pkl").read_bytes()
    assert b"secret" not in pickled
    operations = [(code.name, argument) for code, argument, _ in pickletools.genops(pickled)]
    words = {argument for _, argument in operations if isinstance(argument, str)}
    assert words == {
        *("submitit.core.utils", "DelayedSubmission", "lorabuild.executors.onnode", "run", str(folder)),
        *("function", "args", "kwargs", "_result", "_done", "_timeout_min", "_timeout_countdown"),
    }
    named = [argument for name, argument in operations if name == "GLOBAL"]  # older protocols have no STACK_GLOBAL
    assert not named and [name for name, _ in operations].count("STACK_GLOBAL") == 2
    alone = f"""
import sys, pickle
from pathlib import Path
found = pickle.loads(Path({str(folder / f"{handle.split()[0]}_submitted.pkl")!r}).read_bytes())
heavy = {{"torch", "numpy", "pydantic", "doit"}} & set(sys.modules)
print(found.function.__qualname__, found.args == ({str(folder)!r},), sorted(heavy))
"""
    said = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, cwd=folder)
    assert said.stdout == "run True []\n", said.stderr


def test_setup_lines_run_before_the_job(local: World):
    local.settings = local.settings | {"setup": [f"cd {local.store}", "export STANDIN=1", "touch here"]}
    local.restart()
    assert local.over(local.submit()).state == "ended"
    assert (local.store / "here").exists()


def test_debug_runs_the_job_within_the_first_poll(tmp_path: Path):
    world = World(tmp_path, {"cluster": "debug"})
    handle = world.submit()
    assert world.over(handle).state == "ended"
    assert (world.store / "result").exists()


def test_without_submitit_there_is_one_line(local: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(JobError, match=r"needs submitit: pip install 'lorabuild\[slurm\]'$"):
        local.submit()
    assert not list((local.root / ".lorabuild/slurm").iterdir())


def test_nothing_of_submitit_is_imported_before_the_first_job():
    code = "import sys, lorabuild.executors.slurm as s; s.executor({}, __import__('pathlib').Path('.')); print('submitit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_submitit_brings_the_driver_no_torch():
    code = "import sys, submitit; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_folders_of_jobs_of_long_ago_are_removed(local: World):
    folder = local.root / ".lorabuild/slurm"
    for name, files in (("old-1", ["job.json", "spec.json"]), ("young-1", ["job.json"]), ("not-ours", ["notes"])):
        (folder / name).mkdir(parents=True)
        for file in files:
            (folder / name / file).touch()
    long_ago = time.time() - 40 * 86400
    for path in (
        *(folder / "old-1").iterdir(),
        *(folder / "not-ours").iterdir(),
        folder / "old-1",
        folder / "not-ours",
    ):
        os.utime(path, (long_ago, long_ago))
    (folder / "young-1/written").symlink_to("a file that is gone by the time one looks at it")
    local.over(local.submit())
    assert {path.name for path in folder.iterdir()} == {"young-1", "not-ours", local.handles[0].split()[1]}


# -- Slurm, by stand-ins of its programs ----------------------------------------------------------------------------


def test_a_job_waits_runs_and_ends(cluster: FakeSlurm):
    (cluster.slurm / "hold").touch()
    handle = cluster.submit(Resources(gpus=1, cpus=4, memory_gb=24, minutes=60), wait_at=[2])
    assert handle.split()[0] == "4242"
    status = cluster.until(handle, lambda status: status.state == "waiting" and bool(status.text))
    assert status.text == "PENDING (Priority)"
    (cluster.slurm / "hold").unlink()
    status = cluster.until(handle, lambda status: status.state == "running")
    assert status.text == "RUNNING on gpu3"
    (cluster.store / "go-2").touch()
    assert cluster.over(handle).state == "ended"
    script = (cluster.job(handle) / "script").read_text()
    for line in (
        "partition=gpu",
        "time=60",
        "gpus-per-node=1",
        "cpus-per-task=4",
        "mem=24576M",
        "requeue",
        "signal=USR2@20",
    ):
        assert f"#SBATCH --{line}\n" in script, line
    assert "wckey" not in script


def test_many_jobs_are_one_question(cluster: FakeSlurm):
    cluster.executor.cluster.queue.every_s = 3600
    (cluster.slurm / "hold").touch()
    for _ in range(3):
        cluster.submit()
        for handle in cluster.handles * 3:
            assert cluster.poll(handle).state == "waiting"
    assert (cluster.slurm / "questions").read_text().split() == ["squeue"]


@pytest.mark.parametrize("preempted", [False, True])
def test_usr2_has_the_job_queued_again_and_it_goes_on(cluster: FakeSlurm, preempted: bool):
    handle = cluster.submit(wait_at=[3])
    cluster.at_step(handle, 3)
    if preempted:
        slurm_standin.hit(cluster.job(handle), signal.SIGTERM)
    os.kill(cluster.pid(), signal.SIGUSR2)  # some clusters signal all processes of a job: the worker is deaf to it
    slurm_standin.hit(cluster.job(handle), signal.SIGUSR2)
    until(lambda: (cluster.store / "state").exists())
    (cluster.store / "go-3").touch()
    assert cluster.over(handle).state == "ended"
    assert cluster.steps() == [1, 2, 3, 4, 5, 6]
    assert [event["event"] for event in cluster.events] == ["progress"] * 6 + ["done"]


def test_a_worker_that_does_not_stop_in_time_is_killed_and_queued_again(cluster: FakeSlurm):
    cluster.settings["signal_delay_s"] = 2
    cluster.restart()
    handle = cluster.submit(wait_at=[3], deaf=True)
    cluster.at_step(handle, 3)
    slurm_standin.hit(cluster.job(handle), signal.SIGUSR2)
    (cluster.store / "state").write_text("2")  # what was pushed a minute ago
    until(lambda: len(list(cluster.folder(handle).glob("events-*"))) == 2)
    (cluster.store / "go-3").touch()
    assert cluster.over(handle).state == "ended"
    assert cluster.steps() == [1, 2, 3, 3, 4, 5, 6]


def test_a_lost_node_is_lost_or_slurm_queues_the_job_again(cluster: FakeSlurm):
    handle = cluster.submit(wait_at=[2])
    cluster.at_step(handle, 2)
    slurm_standin.say(cluster.job(handle), "NODE_FAIL", "NodeDown", "gpu3")
    slurm_standin.hit(cluster.job(handle), signal.SIGKILL)
    status = cluster.over(handle)
    assert (status.state, status.text) == ("lost", "Slurm job 4242: NODE_FAIL on gpu3")
    requeued = cluster.submit(wait_at=[2])
    cluster.events.clear()
    cluster.at_step(requeued, 2)
    slurm_standin.say(cluster.job(requeued), "REQUEUED")
    slurm_standin.hit(cluster.job(requeued), signal.SIGKILL)
    until(lambda: len(list(cluster.folder(requeued).glob("events-*"))) == 2)
    (cluster.store / "go-2").touch()
    assert cluster.over(requeued).state == "ended"


def test_a_preempted_job_that_is_not_queued_again_ends_with_what_it_kept(cluster: FakeSlurm):
    handle = cluster.submit(wait_at=[2])
    cluster.at_step(handle, 2)
    slurm_standin.hit(cluster.job(handle), signal.SIGTERM)  # SIGUSR2 never comes
    status = cluster.over(handle)
    why = "it was told to stop; Slurm job 4242: COMPLETED on gpu3"
    assert status.state == "ended"
    assert ending(status.events) == {"event": "stopped", "kept": "step 2 of 6", "why": why}


def test_where_requeue_is_not_allowed_the_job_ends_with_what_it_kept(cluster: FakeSlurm):
    (cluster.root / "bin/scontrol").write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 1\n")
    handle = cluster.submit(wait_at=[2])
    cluster.at_step(handle, 2)
    slurm_standin.hit(cluster.job(handle), signal.SIGUSR2)
    status = cluster.over(handle)
    assert (status.state, ending(status.events)["kept"]) == ("ended", "step 2 of 6")
    assert "scontrol" in cluster.executor.logs(handle)


def test_from_within_a_job_only_where_slurm_is_goes_along(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch):
    (cluster.slurm / "hold").touch()
    said = {"SLURM_CONF": "/etc/other.conf", "SLURM_MEM_PER_NODE": "100", "SBATCH_QOS": "short"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)

    def went_along() -> set[str]:
        found = json.loads((cluster.job(cluster.submit()) / "environment").read_text())
        return {name for name in said if found.get(name) == said[name]}

    assert went_along() == set(said)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert went_along() == {"SLURM_CONF"}
    assert os.environ["SBATCH_QOS"] == "short" and os.environ["SLURM_JOB_ID"] == "17"


def test_cancel_stops_a_running_job_and_a_waiting_one(cluster: FakeSlurm):
    running = cluster.submit(wait_at=[2])
    cluster.at_step(running, 2)
    (cluster.slurm / "hold").touch()
    waiting = cluster.submit()
    cluster.executor.cancel(running)
    cluster.executor.cancel(waiting)
    assert cluster.over(waiting).state == "lost"
    until(lambda: (cluster.store / "state").exists())
    assert ending([*cluster.over(running).events, *cluster.events])["event"] == "stopped"


def test_a_job_that_somebody_cancelled_is_not_begun_again(cluster: FakeSlurm):
    (cluster.slurm / "hold").touch()
    handle = cluster.submit()
    slurm_standin.say(cluster.job(handle), "CANCELLED")
    status = cluster.over(handle)
    assert ending(status.events)["lines"] == ["its Slurm job 4242 was cancelled"]


@pytest.mark.parametrize(
    "reason", ["PartitionTimeLimit", "QOSMaxGRESPerJob", "AssocMaxWallDurationPerJobLimit", "BadConstraints"]
)
def test_a_job_that_asks_for_more_than_there_is_does_not_wait_for_ever(cluster: FakeSlurm, reason: str):
    (cluster.slurm / "hold").touch()
    handle = cluster.submit()
    slurm_standin.say(cluster.job(handle), "PENDING", "QOSMaxJobsPerUserLimit")
    cluster.until(handle, lambda status: status.text == "PENDING (QOSMaxJobsPerUserLimit)")
    slurm_standin.say(cluster.job(handle), "PENDING", reason)
    status = cluster.over(handle)
    line = f"its Slurm job 4242 would wait for ever, and was cancelled: PENDING ({reason})"
    assert ending(status.events)["lines"] == [line]
    assert slurm_standin.state(cluster.job(handle)) == "CANCELLED"


def test_a_job_that_its_node_could_not_start_is_tried_elsewhere(cluster: FakeSlurm):
    cluster.executor.cluster.settle_s = 0.5
    (cluster.slurm / "hold").touch()
    handle = cluster.submit()
    slurm_standin.say(cluster.job(handle), "PENDING", "launch failed requeued held")
    texts = [cluster.poll(handle).text]
    texts.append(cluster.over(handle).text)
    assert cluster.poll(handle).state == "lost"
    assert texts == ["Slurm job 4242: PENDING (launch failed requeued held)", "Slurm job 4242: CANCELLED"]
    assert slurm_standin.state(cluster.job(handle)) == "CANCELLED"


def test_memory_that_runs_out_names_the_key(cluster: FakeSlurm):
    handle = cluster.submit(wait_at=[2])
    cluster.at_step(handle, 2)
    slurm_standin.say(cluster.job(handle), "OUT_OF_MEMORY", "OutOfMemory", "gpu3")
    slurm_standin.hit(cluster.job(handle), signal.SIGKILL)
    status = cluster.over(handle)
    assert ending(status.events)["lines"] == ["its Slurm job 4242 ran out of memory: raise [executor] memory_gb"]


def test_a_job_that_squeue_has_forgotten_is_asked_of_the_accounting(cluster: FakeSlurm):
    handle = cluster.submit(dies=True)
    until(lambda: slurm_standin.state(cluster.job(handle)) not in ("PENDING", "RUNNING"))
    (cluster.job(handle) / "forgotten").touch()
    cluster.restart()
    status = cluster.over(handle)
    assert (status.state, status.text) == ("lost", "Slurm job 4242: COMPLETED on gpu3")
    assert "signal SIGKILL" in cluster.executor.logs(handle)


def test_a_job_that_nobody_knows_is_lost_after_a_while(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch):
    (cluster.slurm / "hold").touch()
    handle = cluster.submit()
    (cluster.job(handle) / "forgotten").touch()
    (cluster.slurm / "no-accounting").touch()
    assert cluster.poll(handle).text == "submitted, and not listed by Slurm yet"
    monkeypatch.setattr("lorabuild.executors.sbatch.UNSEEN_S", 0.0)
    status = cluster.over(handle)
    assert (status.state, status.text) == ("lost", "Slurm knows no job 4242 any more")


def test_a_controller_that_does_not_answer_loses_no_job(cluster: FakeSlurm):
    handle = cluster.submit(wait_at=[2])
    cluster.at_step(handle, 2)
    complaint = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    (cluster.slurm / "down").write_text(complaint)
    cluster.restart()
    status = cluster.until(handle, lambda status: bool(status.text))
    assert (status.state, status.text) == ("waiting", complaint)
    (cluster.slurm / "down").unlink()
    cluster.until(handle, lambda status: status.state == "running")
    (cluster.slurm / "down").write_text(complaint)  # a job of which it had an answer stays what it was
    (cluster.store / "go-2").touch()
    assert cluster.over(handle).state == "ended"


def test_what_sbatch_says_no_with_is_one_line(cluster: FakeSlurm, capfd: pytest.CaptureFixture[str]):
    (cluster.slurm / "reject").write_text(
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n"
    )
    with pytest.raises(JobError) as caught:
        cluster.submit()
    assert str(caught.value) == (
        "sbatch: Batch job submission failed: Invalid account or account/partition combination specified"
    )
    assert capfd.readouterr() == ("", "")
    assert not list((cluster.root / ".lorabuild/slurm").iterdir())


def test_a_busy_controller_is_asked_again(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lorabuild.executors.sbatch.TRIES_S", (0.0, 0.0))
    reject = cluster.slurm / "reject"
    reject.write_text("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n")
    with pytest.raises(JobError, match="Socket timed out"):
        cluster.submit()
    monkeypatch.setattr("lorabuild.executors.sbatch.time.sleep", lambda _: reject.unlink(missing_ok=True))
    assert cluster.submit()


def test_without_slurm_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bin").mkdir()
    for name in ("sh", "ps", "bash"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    world = World(tmp_path, {})
    for needs in (world.submit, lambda: world.executor.cancel("4242 x")):
        with pytest.raises(JobError) as caught:
            needs()
        assert "not found: [executor] kind" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / ".lorabuild/slurm/x").mkdir()
    with pytest.raises(JobError, match=r"^squeue: not found"):
        world.poll("4242 x")
