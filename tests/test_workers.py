"""Workers stay warm between jobs, are replaced when they die, and make the bytes that cold ones make."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standin import Stage
from world import MANIFEST, World

from lorabuild import memory
from lorabuild.errors import JobError
from lorabuild.executors.attend import result
from lorabuild.memory import available_bytes, short_of
from lorabuild.stage import Stage as RealStage
from lorabuild.stages import STAGES
from lorabuild.workers.pool import Pool
from lorabuild.workers.process import Worker
from lorabuild.workers.slots import Place, Slots

# who gets a job


def worker(*held: str, device: str | None = None, used: bool = True) -> Worker:
    """An idle worker that has these networks in memory, a gigabyte each."""
    process: Any = SimpleNamespace(returncode=None, poll=lambda: None, pid=-1, wait=lambda: 0)
    return Worker(process, device, used, {digest: 10**9 for digest in held})


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool whose new workers are no processes."""
    pool = Pool(tmp_path)
    pool.open(Slots(1, 1))
    monkeypatch.setattr(Pool, "_start", lambda self: worker(used=False))
    monkeypatch.setattr(Worker, "_end_group", lambda self: None)
    return pool


def spec(*wanted: str, device: str | None = None) -> dict[str, Any]:
    return {"base": {f"part{n}": digest for n, digest in enumerate(wanted)}, "device": device, "loads": 5 * 10**9}


def test_the_worker_that_has_the_base_gets_the_job(pool: Pool):
    other, empty, warm = worker("x1", "x2"), worker(), worker("a1", "a2", "vae")
    pool._idle = [warm, other, empty]
    assert pool._take(spec("a1", "a2")) is warm
    assert pool._take(spec("b1")) is empty  # not the one whose base another job may want
    assert pool._take(spec()) is other
    assert pool._take(spec()).used and not pool._idle


def test_a_job_without_a_base_takes_the_worker_that_has_least(pool: Pool):
    warm, empty = worker("a1"), worker()
    pool._idle = [warm, empty]
    assert pool._take(spec()) is empty


def test_a_worker_stays_on_its_device(pool: Pool):
    first, second, fresh = worker("a1", device="0"), worker(device=""), worker(used=False)
    pool._idle = [first, second, fresh]
    assert pool._take(spec("b1", device="0")) is first  # two on one GPU would not both have room
    assert pool._take(spec("a1", device="1")) is fresh and fresh.device == "1"
    assert pool._take(spec(device="")) is second


def test_a_job_on_several_devices_ends_the_idle_workers_of_each(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    ended: list[Worker] = []
    monkeypatch.setattr(Worker, "end", lambda self: ended.append(self))
    first, second, third, none = (worker("a1", device=device) for device in ("0", "1", "2", ""))
    pool._idle = [first, second, third, none]
    both = pool._take(spec(device="0,1"))
    assert (both.device, ended, pool._idle) == ("0,1", [first, second], [third, none])
    pool._busy.remove(both)
    pool._idle.append(both)
    assert pool._take(spec(device="0,1")) is both
    pool._idle.append(both)
    pool._take(spec(device="1"))
    assert ended[2:] == [both]


def test_idle_workers_make_room_for_a_base_largest_first(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    large, small, empty = worker("x1", "x2", device="7"), worker("y1", device="7"), worker(device="7")
    free = [4 * 10**9]
    monkeypatch.setattr("lorabuild.workers.pool.short_of", lambda need: free[0] < need)
    monkeypatch.setattr(Worker, "end", lambda self: free.append(free.pop() + sum(self.held.values())))
    pool._idle = [empty, small, large]
    pool._take(spec("a1"))
    assert pool._idle == [empty, small]
    free[0] = 0
    pool._take(spec())  # loads nothing
    assert pool._idle == [empty, small]


# real workers, without an engine


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run the stand-in job in a real worker: `real("fail")` -> what the pool gives or raises."""
    stage = Stage(tmp_path)
    for name, text in stage.env.items():
        monkeypatch.setenv(name, text)
    pool = Pool(tmp_path / "logs")
    pool.open(Slots(1, 1))

    def run(what: str = "") -> Any:
        stage.plan(train_p0=what)
        job = {"name": "train:p0", "run": "standin:quick", "params": {}, "options": {}, "outputs": [], "snapshots": []}
        places = {"inputs": {}, "store": str(tmp_path / "store"), "folder": str(tmp_path / "scratch"), "anew": False}
        *_, last = pool.events({**job, **places, "base": {}, "loads": 0}, Place(None, 1))
        return result(last)

    run.pool, run.pids = pool, lambda: [line["pid"] for line in stage.lines("begin")]
    yield run
    pool.close()


def test_a_worker_serves_one_job_after_another_also_after_a_mistake(real: Any):
    real()
    with pytest.raises(JobError, match="not finite"):
        real("fail")
    real()
    assert len(set(real.pids())) == 1


def test_a_worker_that_dies_in_a_job_is_replaced(real: Any):
    with pytest.raises(JobError, match=r"ended in the middle of the job: signal SIGKILL.*out of memory"):
        real("crash")
    real()
    assert len(set(real.pids())) == 2


def test_a_worker_that_dies_idle_costs_no_job(real: Any, monkeypatch: pytest.MonkeyPatch):
    real()
    for _ in range(2):
        os.kill(real.pids()[-1], signal.SIGKILL)
        monkeypatch.setattr(Worker, "alive", lambda self: True)  # it was alive when it was asked
        real()
    assert len(set(real.pids())) == 3


def test_a_worker_that_met_a_fault_of_ours_is_not_used_again(real: Any):
    with pytest.raises(JobError) as error:
        real("fault")
    assert str(error.value) == "ValueError: a fault"
    real()
    assert len(set(real.pids())) == 2


def test_workers_that_cannot_start_are_one_line(real: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lorabuild.workers.process.sys.executable", "/bin/false")
    with pytest.raises(JobError, match=r"no worker can be started: exit code 1 \(see .*worker.log\)"):
        real()


def test_a_dead_worker_is_one_line_and_the_others_go_on(tmp_path: Path):
    stage = Stage(tmp_path, 3, "gpu = 2", train_p1="crash")
    result = stage.doit("-n", "4", "--continue")
    assert result.code == 1
    assert len([line for line in result.out.splitlines() if "FAILED" in line]) == 1
    assert {"chop:p0", "chop:p2"} <= result.built and "Traceback" not in result.out + result.err
    assert "train-p1.log" in result.out.splitlines()[-2], "and then the command that goes on"


# memory


def test_memory_is_that_of_the_machine_or_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_bytes() is None and not short_of(10**15)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert available_bytes() == 8000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() == 8000 * 1024
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 2500000\n")
    assert available_bytes() == 3_500_000
    assert short_of(3_500_001) and not short_of(3_500_000)


def test_a_network_is_kept_until_another_or_the_memory_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    from lorabuild.nn import warm

    def get(component: str, digest: str | None, dtype: torch.dtype = torch.float32) -> Any:
        return warm.kept(component, digest, dtype, tmp_path, lambda: torch.nn.Linear(2, 2).train())

    warm.forget()
    unet, vae = get("unet", "a"), get("vae", "v")
    assert get("unet", "a") is unet and get("vae", "v") is vae
    assert not unet.training and not unet.weight.requires_grad
    assert warm.held() == {"a": 24, "v": 24}
    assert get("unet", "a", torch.bfloat16) is not unet
    assert get("te1", None) is not get("te1", None) and "te1" not in warm._warm
    warm.make_way({"unet": "b", "vae": "v"})
    assert warm.held() == {"v": 24}
    monkeypatch.setattr(warm, "short_of", lambda need: True)
    assert get("unet", "b") is not unet and warm.held() == {"b": 24}
    warm.forget()


# warm is as cold


def test_a_job_finds_the_libraries_as_in_a_new_process():
    import numpy
    import torch

    from lorabuild.nn.neutral import neutral

    def state() -> list[Any]:
        flags = [
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
        ]
        flags += [torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()]
        flags += [torch.backends.cudnn.benchmark, torch.is_anomaly_enabled()]
        return [*flags, random.random(), numpy.random.random(), torch.rand(1).item()]

    threads = torch.get_num_threads()
    neutral(threads)
    before = state()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(threads + 1)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.autograd.set_detect_anomaly(True)
    torch.backends.cudnn.benchmark = True
    random.seed(5)
    neutral(threads)
    assert state() == before


def test_the_stages_that_load_a_base_have_gpu_slots():
    assert {name for name, stage in STAGES.items() if stage.slot == "gpu"} >= {"latents", "train"}
    assert RealStage("any", 1, lambda repository: [], lambda job, workspace, progress: None).slot == "cpu"


@pytest.mark.slow
def test_a_warm_workers_bytes_are_a_cold_ones(built_once: World, tmp_path: Path):
    """`ember` was trained in a worker that had trained nothing; here it comes second, after another kind of training."""
    apart = World(tmp_path / "apart")
    apart.project("ember")
    apart.project("cinder")
    other = MANIFEST.format(title="", steps=3, seed=99, thr=-2.6, keep='["TE"]')
    changes = {"dim = 4": "dim = 8", "text_encoder_lr = 1e-3": "text_encoder_lr = 0\ngradient_checkpointing = true"}
    for old, new in changes.items():
        assert old in other
        other = other.replace(old, new)
    apart.write("projects/cinder/lora.toml", other)
    together = apart.copy(tmp_path / "together")
    builds = [(apart, ["train:ember"]), (apart, ["train:cinder"]), (together, ["train:cinder", "train:ember"])]
    for world, targets in builds:
        result = world.doit(*targets)
        assert result.code == 0, result.out + result.err

    logs = {name: (together.root / f".lorabuild/logs/train-{name}.log").read_text() for name in ("cinder", "ember")}
    processes = {re.search(r"process (\d+)", log)[1] for log in logs.values()}
    assert len(processes) == 1 and "unet: in memory already" in logs["ember"] and "in memory" not in logs["cinder"]
    warm, cold = together.built_files(), apart.built_files()
    names = [name for name in cold if name.endswith((".safetensors", "train.jsonl"))]
    assert len(names) >= 6 and {name: warm[name] for name in names} == {name: cold[name] for name in names}
    first = built_once.built_files()["ember/ember.safetensors"]
    assert warm["ember/ember.safetensors"] == first
