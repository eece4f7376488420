"""Several processes on one training: the same images an update, the same result, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_training import run
from tiny_base import RECIPE, dataset, latents, outputs, training

from lorabuild.errors import Interrupted, JobError
from lorabuild.loaded import device_of
from lorabuild.nn.batches import Data, micro_batch
from lorabuild.nn.parallel import WHOLE, part_of, units
from lorabuild.stages.train import STAGE

THREE = RECIPE | {"gradient_accumulation_steps": 3, "max_train_steps": 2, "max_validation_steps": 1}
TWO = {"processes": 2}


def test_each_process_takes_its_own_gpu_before_it_loads_anything(monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for rank in ({}, {"rank": 1}):
        assert device_of({"device": "cuda", **rank}, RECIPE, SimpleNamespace()) == "cuda"
    assert device_of({"device": "cpu", "rank": 1}, RECIPE, SimpleNamespace()) == "cpu"
    assert taken == [0, 1]


# how an update is dealt


def test_micro_batches_stay_whole_where_there_is_one_for_each_process():
    assert units([4, 4, 1], 2) == units([4, 4, 1], 3) == [(0, WHOLE), (1, WHOLE), (2, WHOLE)]


def test_fewer_micro_batches_than_processes_are_cut():
    assert units([4], 2) == [(0, slice(0, 2)), (0, slice(2, 4))]
    assert units([5, 1], 4) == [(0, slice(0, 2)), (0, slice(2, 5)), (1, WHOLE)]


def test_a_part_of_a_batch_is_its_samples_as_they_were_drawn():
    batch = micro_batch(Data(dataset(), latents().__getitem__), RECIPE, 7, 0, [(0, 0), (2, 0), (1, 0)], 0, 0)
    first, second = part_of(batch, slice(0, 2)), part_of(batch, slice(2, 3))
    for name in ("latents", "noise", "timesteps", "sizes"):
        assert torch.equal(torch.cat([getattr(first, name), getattr(second, name)]), getattr(batch, name))
    assert first.captions + second.captions == batch.captions
    assert part_of(batch, WHOLE) is batch


TOY = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from lorabuild.nn.flat import Flat
from lorabuild.nn.parallel import Alone, joined

meeting, rank, exact = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "exact"
data = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
sizes = [4, 2, 1] if exact else [7]
starts = [sum(sizes[:micro]) for micro in range(len(sizes))]


def update(ranks):
    weights = [torch.nn.Parameter(torch.full((3,), 0.3)), torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(1))]

    def work(micro, part):
        if ranks.leads and len(sys.argv) > 4:
            raise ZeroDivisionError("fault of the first")
        x = data[starts[micro] :][: sizes[micro]][part]
        use = weights[:2] if micro == 0 else weights[:1]
        loss = sum(((x * weight).sum(1).sin() ** 2).sum() for weight in use)
        loss.backward()
        return loss.detach()

    flat = Flat([weights])
    losses = ranks.update(sizes, work, flat)
    flat.settle()
    return losses, [weight.grad for weight in weights]


with joined(Path(meeting), rank, 2, "cpu") as ranks:
    loss, grads = update(replace(ranks, exact=exact))
alone_loss, alone = update(Alone())
assert grads[2] is None is alone[2], "what no layer used has no gradient"
for one, other in zip(grads[:2], alone[:2]):
    assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=1e-6), (one, other)
assert torch.equal(loss, alone_loss) if exact else abs(loss.sum() - alone_loss.sum()) < 1e-6
print("equal")
"""


def toys(tmp_path: Path, *args: str) -> list[tuple[int, str]]:
    """What two processes say that run TOY."""
    command = [sys.executable, "-c", TOY, str(tmp_path / "meeting")]
    both = [
        subprocess.Popen([*command, str(rank), *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    return [(process.returncode, text.strip()) for process, text in zip(both, said, strict=True)]


@pytest.mark.parametrize("how", ["exact", "cut"])
def test_gradients_are_those_of_one_process(tmp_path: Path, how: str):
    """Three micro-batches are added as one process adds them; one that is cut in two gives the same to float32."""
    assert toys(tmp_path, how) == [(0, "equal"), (0, "equal")]


def test_a_fault_ends_both(tmp_path: Path):
    first, second = toys(tmp_path, "exact", "fault")
    assert (first[0], second[0]) == (1, 1)
    assert "ZeroDivisionError: fault of the first" in first[1]
    assert second[1].endswith("JobError: process 1 of 2: ZeroDivisionError: fault of the first")


# two processes on a training


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    run(folder, recipe=THREE, snapshots=(1,))
    return outputs(folder)


def test_two_processes_write_the_bytes_of_one(alone: dict[str, bytes], tmp_path: Path):
    run(tmp_path, recipe=THREE, snapshots=(1,), options=TWO)
    assert outputs(tmp_path) == alone
    assert os.listdir(tmp_path / "scratch") == ["state"]


@pytest.mark.slow
def test_two_processes_go_on_from_a_state_of_one(alone: dict[str, bytes], tmp_path: Path):
    """Stopped in the second update; the state is the leader's."""
    job, workspace = training(tmp_path, recipe=THREE, snapshots=(1,), options=TWO)
    said = iter([False] * 3)
    workspace.stopping = lambda: next(said, True)
    with pytest.raises(Interrupted) as stop:
        STAGE.run(job, workspace, lambda done, total, text: None)
    assert stop.value.kept == "step 1 of 2"
    assert run(tmp_path, recipe=THREE, snapshots=(1,), options=TWO | {"have_steps": ["step/1"]}) == {"resumed_at": 1}
    assert outputs(tmp_path) == {role: data for role, data in alone.items() if role != "step/1"}


def children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(number) for number in path.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the processes that were started")
def test_a_process_that_is_killed_is_one_line(tmp_path: Path):
    others = set(children())  # of other tests: a server that they share

    def kill(done: int, total: int, text: str) -> None:
        for process in set(children()) - others:
            os.kill(process, signal.SIGKILL)

    job, workspace = training(tmp_path, recipe=THREE, options=TWO)
    with pytest.raises(JobError, match=r"^process 2 of 2 ended: signal SIGKILL"):
        STAGE.run(job, workspace, kill)
    assert set(children()) <= others


def test_a_fault_of_another_process_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second cannot read what the first can."""
    job, workspace = training(tmp_path, recipe=THREE, options=TWO)
    from lorabuild import team

    spec = team._spec
    monkeypatch.setattr(team, "_spec", lambda *args: spec(*args) | {"paths": {}})
    with pytest.raises(JobError, match=r"^process 2: KeyError: 'dataset'"):
        STAGE.run(job, workspace, lambda done, total, text: None)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_another_process_names_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lorabuild import team

    spec = team._spec

    def sick(*args: Any) -> dict[str, Any]:
        told = spec(*args)
        return told | {"params": {**told["params"], "recipe": {**told["params"]["recipe"], "unet_lr": 1e30}}}

    monkeypatch.setattr(team, "_spec", sick)
    job, workspace = training(tmp_path, recipe=THREE | {"text_encoder_lr": 0.0}, options=TWO)
    with pytest.raises(JobError, match=r"^step 2: the loss is not finite"):
        STAGE.run(job, workspace, lambda done, total, text: None)
