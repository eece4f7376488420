"""Many jobs at once: slots, devices, whole lines, logs, and what the end of a queue says."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from standin import Stage

from lorabuild.errors import Interrupted
from lorabuild.workers.outcome import not_run
from lorabuild.workers.pool import log_name
from lorabuild.workers.slots import Slots, cuda_devices

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def most_at_once(slots: Slots, kinds: str, expected: int) -> dict[str, int]:
    """Hold places of these kinds ("g", "c") from a thread each; how many of a kind, and of all, were held at once.

    Who has a place keeps it until `expected` are held, and then a little longer: one more would be seen.
    """
    held = {"gpu": 0, "cpu": 0, "all": 0}
    most, changed = dict(held), threading.Condition()

    def hold(kind: str) -> None:
        with slots.place(kind):
            for change in (1, -1):
                with changed:
                    for one in (kind, "all"):
                        held[one] += change
                        most[one] = max(most[one], held[one])
                    changed.notify_all()
                    changed.wait_for(lambda: most["all"] >= expected, timeout=60)
                time.sleep(0.02)

    threads = [threading.Thread(target=hold, args=({"g": "gpu", "c": "cpu"}[kind],)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most


# the slots by themselves


def test_a_gpu_slot_is_beside_the_cpu_slots():
    assert most_at_once(Slots(1, 2, lambda: ["0"]), "ggccccgg", 3) == {"gpu": 1, "cpu": 2, "all": 3}


def test_without_a_gpu_a_heavy_job_takes_its_share_of_the_cores():
    most = most_at_once(Slots(1, 2), "ggccccgg", 2)
    assert (most["gpu"], most["all"]) == (1, 2)


def test_no_more_jobs_run_than_are_allowed():
    slots = Slots(4, 4, lambda: ["0"])
    slots.limit(3)
    assert most_at_once(slots, "gggggccccc", 3)["all"] == 3


def test_each_gpu_slot_has_a_device_and_other_jobs_see_none():
    slots = Slots(2, 2, lambda: ["5", "7"])
    with slots.place("gpu") as first, slots.place("gpu") as second, slots.place("cpu") as third:
        assert (first.device, second.device, third.device) == ("5", "7", "")
    shared = Slots(3, 1, lambda: ["0", "1"])
    with shared.place("gpu") as first, shared.place("gpu") as second, shared.place("gpu") as third:
        assert (first.device, second.device, third.device) == ("0", "1", "0")
    with Slots(1, 1).place("gpu") as place:
        assert place.device is None


def test_a_job_of_several_processes_has_a_device_for_each():
    slots = Slots(3, 2, lambda: ["5", "7"])
    with slots.place("gpu", 2) as both:
        assert (both.device, both.processes) == ("5,7", 2)
        with slots.place("gpu") as third:
            assert (third.device, third.processes) == ("5", 1)
    with slots.place("gpu", 4) as all_there_are:
        assert (all_there_are.device, all_there_are.processes) == ("5,7", 2)
    with Slots(1, 2, lambda: ["5", "7"]).place("gpu", 2) as one_slot:
        assert (one_slot.device, one_slot.processes) == ("5", 1)
    with Slots(4, 3).place("gpu", 4) as without:
        assert (without.device, without.processes) == (None, 3)


def test_a_job_of_several_processes_waits_until_all_its_slots_are_free():
    slots, held = Slots(2, 2, lambda: ["0", "1"]), threading.Event()

    def hold_both() -> None:
        with slots.place("gpu", 2):
            held.set()

    with slots.place("gpu"):
        waiting = threading.Thread(target=hold_both)
        waiting.start()
        assert not held.wait(0.1)
    waiting.join(10)
    assert held.is_set()


def test_the_threads_of_a_job_do_not_depend_on_its_company(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lorabuild.workers.slots.cores", lambda: 16)
    slots = Slots(1, 4)
    slots.limit(1)
    with slots.place("cpu") as alone:
        assert alone.threads == 4
    with Slots(1, 32).place("cpu") as place:
        assert place.threads == 1


def test_who_waits_for_a_slot_is_told_that_the_build_stops():
    slots, told = Slots(1, 1), []

    def wait() -> None:
        try:
            with slots.place("cpu"):
                told.append("place")
        except Interrupted:
            told.append("stopped")

    with slots.place("cpu"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.05)
        slots.shut_down()
        waiting.join(5)
    assert told == ["stopped"]
    with pytest.raises(Interrupted), slots.place("gpu"):
        pass


def test_who_stops_the_build_does_not_wait_for_a_slow_driver():
    asked, answer, told, found_out = threading.Event(), threading.Event(), [], []

    def find() -> list[str]:
        asked.set()
        found_out.append(answer.wait(60))
        return ["0"]

    slots = Slots(1, 1, find)

    def wait() -> None:
        try:
            with slots.place("gpu"):
                told.append("place")
        except Interrupted:
            told.append("stopped")

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    assert asked.wait(5)
    slots.shut_down()
    assert slots.shut and not found_out
    answer.set()
    for thread in waiting:
        thread.join(5)
    assert told == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("0", ["0"]), ("2,3", ["2", "3"]), ("", []), ("-1", []), ("1,-1,2", ["1"]), ("GPU-8932f937", ["GPU-8932f937"])],
)
def test_devices_are_those_that_cuda_would_see(visible: str, devices: list[str]):
    assert cuda_devices({"CUDA_VISIBLE_DEVICES": visible}) == devices


def test_without_a_word_devices_are_counted_from_zero(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lorabuild.workers.slots.glob.glob", lambda pattern: ["/dev/nvidia3", "/dev/nvidia5"])
    assert cuda_devices({}) == ["0", "1"]
    monkeypatch.setattr("lorabuild.workers.slots.glob.glob", lambda pattern: [])
    monkeypatch.setattr("lorabuild.workers.slots.shutil.which", lambda name: None)
    assert cuda_devices({}) == []


# in a build


def test_trainings_run_one_at_a_time_and_other_jobs_beside_them(tmp_path: Path):
    stage = Stage(tmp_path, 4, "gpu = 1\ncpu = 2", **{f"train_p{n}": "sleep 0.1" for n in range(4)})
    result = stage.doit("-n", "8", CUDA_VISIBLE_DEVICES="0")
    assert result.code == 0, result.out + result.err
    assert stage.at_once("train") == 1
    assert 2 <= stage.at_once() <= 3


def test_trainings_that_wait_for_the_gpu_keep_nobody_waiting(tmp_path: Path):
    stage = Stage(tmp_path, 5, "gpu = 1\ncpu = 2", **{f"train_p{n}": "beside-chop" for n in range(5)})
    assert stage.doit("-n", "2", CUDA_VISIBLE_DEVICES="0").code == 0
    assert stage.at_once() == 2
    order = [line["job"].partition(":")[0] for line in stage.lines("begin")]
    trainings = [number for number, name in enumerate(order) if name == "train"]
    assert order.index("chop") < trainings[2]  # while the second one runs


def test_every_gpu_has_a_training(tmp_path: Path):
    plan = {f"train_p{n}": "meet 2" for n in range(4)}
    stage = Stage(tmp_path, 4, "gpu = 2\ncpu = 2", **plan)
    assert stage.doit("-n", "8", CUDA_VISIBLE_DEVICES="3,5").code == 0
    assert stage.at_once("train") == 2
    seen = {(line["job"].partition(":")[0], line["device"]) for line in stage.lines("begin")}
    assert {device for job, device in seen if job == "train"} == {"3", "5"}
    assert {device for job, device in seen if job in ("base", "norms", "chop")} == {""}
    workers = {line["pid"]: set() for line in stage.lines("begin")}
    for line in stage.lines("begin"):
        workers[line["pid"]].add(line["device"])
    assert all(len(devices) == 1 for devices in workers.values())  # CUDA reads it once in the life of a process


def test_plain_doit_runs_one_job_at_a_time_with_as_many_threads_as_ever(tmp_path: Path):
    one, many = (Stage(tmp_path / name, 2, "cpu = 2") for name in ("one", "many"))
    assert one.doit(**NO_GPU).code == many.doit("-n", "8", **NO_GPU).code == 0
    assert one.at_once() == 1
    assert {line["threads"] for line in one.lines()} == {line["threads"] for line in many.lines()}
    assert one.world.built_files() == many.world.built_files()


def test_lines_are_whole_whoever_writes_them(tmp_path: Path):
    stage = Stage(tmp_path, 3, "gpu = 3\ncpu = 3", **{f"train_p{n}": "chatter 200" for n in range(3)})
    result = stage.doit("-n", "8", **NO_GPU)
    assert result.code == 0
    said = [line for line in result.out.splitlines() if "xxx" in line]
    assert len(said) == 600
    assert all(re.fullmatch(r"warning: train:p\d: \d{4} x{300}", line) for line in said)
    known = r"(warning: )?(base|norms|dataset|latents|train|spectrum|resize|chop):\w+|\d+ built"
    assert all(re.match(known, line) for line in result.out.splitlines())
    assert "printed by a job" not in result.out


def test_a_file_with_a_strange_name_makes_no_line_of_its_own(tmp_path: Path):
    stage = Stage(tmp_path, 1)
    assert stage.doit("dataset").code == 0
    stage.world.picture("projects/p0/images/a\nFAILED \x1b[31m.png", 3)
    result = stage.doit("dataset")
    assert result.code == 0
    assert not any(line.startswith("FAILED") for line in result.out.splitlines())
    assert "\x1b" not in result.out and "\\nFAILED" in result.out


def test_each_job_has_a_log_of_its_own(tmp_path: Path):
    stage = Stage(tmp_path, 1, train_p0="chatter 1")
    stage.world.manifest("p0", title="[variants.mini.chop]\nkeep = ['TE']\n")
    assert stage.doit().code == 0
    logs = {path.name for path in (stage.world.root / ".lorabuild/logs").iterdir()}
    assert {"train-p0.log", "chop-p0.log", "chop-p0@mini.log"} <= logs
    assert "printed by a job" in (stage.world.root / ".lorabuild/logs/train-p0.log").read_text()
    assert log_name("chop:a/../b@lr=1e-4") == "chop-a-..-b@lr=1e-4.log"


# failures


def test_what_failed_is_named_with_its_log_and_what_needs_it_is_not_run(tmp_path: Path):
    stage = Stage(tmp_path, 3, train_p1="fail")
    stage.world.write("projects/p2/images/1.png", b"not an image")
    result = stage.doit("-n", "4", "--continue")
    assert result.code == 1
    first, *rest, on = result.out.splitlines()[-4:]
    assert re.match(r"10 built, 2 failed, 8 not run in ", first)
    broken, failed = rest
    assert broken.startswith("failed: dataset:p2: projects/p2/images/1.png") and "dataset-p2.log)" in broken
    assert failed == (
        "failed: train:p1: step 3: the loss is not finite (nan): lower unet_lr (log: .lorabuild/logs/train-p1.log)"
    )
    assert on == "once that is mended, `doit -n 4 --continue` goes on from here"
    assert result.ran["chop:p0"] == "built"


def test_without_continue_no_training_begins_after_a_failure(tmp_path: Path):
    plan = {"train_p0": "fail-after 3"} | {f"train_p{n}": "sleep 0.5" for n in range(1, 4)}
    stage = Stage(tmp_path, 4, "gpu = 1\ncpu = 2", **plan)
    result = stage.doit("-n", "8", CUDA_VISIBLE_DEVICES="0")
    assert result.code == 1
    began = {line["job"]: line["at"] for line in stage.lines("begin")}
    failed = next(line["at"] for line in stage.lines("end") if line["job"] == "train:p0")
    assert all(at <= failed for at in began.values())
    assert "not run" in result.out


def test_not_run_is_what_was_asked_for_with_all_that_it_needs():
    needs = {"chop:a": ["train:a"], "train:a": ["base"], "chop:b": ["base"], "base": [], "chop:c": ["base"]}
    assert not_run(["chop:a", "chop:b"], needs.__getitem__, {"base", "chop:b"}) == {"chop:a", "train:a"}


@pytest.mark.slow
def test_an_overnight_queue_builds_all_that_can_be_built(tmp_path: Path):
    stage = Stage(tmp_path, 20, "gpu = 2\ncpu = 2", **{f"train_p{n}": "sleep 0.2" for n in range(20)})
    stage.plan(**{f"train_p{n}": "fail" if n == 7 else "sleep 0.2" for n in range(20)})
    stage.world.write("projects/p11/images/1.png", b"not an image")
    result = stage.doit("-n", "4", "--continue")
    assert result.code == 1
    chopped = {path.parent.name for path in stage.world.root.glob("build/*/*-chopped.safetensors")}
    assert chopped == {f"p{n}" for n in range(20)} - {"p7", "p11"}
    mend = [line for line in result.out.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in mend] == ["dataset:p11", "train:p7"]
    stage.plan()
    stage.world.picture("projects/p11/images/1.png", 11)
    again = stage.doit("-n", "4", "--continue")
    assert again.code == 0
    assert {job.partition(":")[2] for job in again.ran} == {"p7", "p11"}
