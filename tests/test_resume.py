"""The state of a training on disk: whole or not there, its own or not taken up, and saved only when that is cheap."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from lorabuild.nn.resume import DTYPES, REST, State, StateFile, Unusable

STATE = State({"b": torch.arange(6.0).view(2, 3), "a|step": torch.tensor(3.0)}, {"step": 3, "log": [{"loss": 0.5}]})


class Clock:
    """A clock that is read off a list: each reading is one tick further."""

    def __init__(self, tick: float):
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_a_state_comes_back_as_it_was(tmp_path: Path):
    StateFile(tmp_path / "state", "mine").save(STATE)
    found = StateFile(tmp_path / "state", "mine").load()
    assert found is not None and found.facts == STATE.facts
    assert found.tensors.keys() == STATE.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in STATE.tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_kind_of_number_comes_back_to_the_bit_and_is_safetensors(tmp_path: Path, dtype: torch.dtype):
    tensors = {
        "of odd length": torch.arange(3).to(dtype),
        "none": torch.zeros(0, 4, dtype=dtype),
        "turned": torch.arange(6).to(dtype).view(2, 3).T,
        "one": torch.ones((), dtype=dtype),
        "last": torch.arange(2, dtype=torch.float64),
    }
    StateFile(tmp_path / "state", "mine").save(State(tensors, {}))
    found = StateFile(tmp_path / "state", "mine").load()
    assert found is not None and found.tensors.keys() == tensors.keys()
    theirs = load((tmp_path / "state").read_bytes()[32:])
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)
        assert torch.equal(theirs[name], tensor)


def test_without_a_state_there_is_none(tmp_path: Path):
    assert StateFile(tmp_path / "state", "mine").load() is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:40] + b"x" + data[41:],
        lambda data: b"0" * 32 + data[32:],
    ],
    ids=["empty", "one byte short", "half", "a bit flipped", "header", "digest"],
)
def test_a_damaged_state_is_not_taken_up(tmp_path: Path, damage: Callable[[bytes], bytes]):
    StateFile(tmp_path / "state", "mine").save(STATE)
    (tmp_path / "state").write_bytes(damage((tmp_path / "state").read_bytes()))
    with pytest.raises(Unusable, match="damaged"):
        StateFile(tmp_path / "state", "mine").load()


def test_the_state_of_another_training_is_not_taken_up(tmp_path: Path):
    StateFile(tmp_path / "state", "another").save(STATE)
    with pytest.raises(Unusable, match="another training"):
        StateFile(tmp_path / "state", "mine").load()


def test_a_save_that_was_cut_short_leaves_the_state_before(tmp_path: Path):
    file = StateFile(tmp_path / "state", "mine")
    file.save(STATE)
    (tmp_path / "state.part").write_bytes(b"cut short")
    assert file.load().facts["step"] == 3
    file.save(State({}, {"step": 4}))
    assert file.load().facts["step"] == 4


def test_a_save_that_fails_leaves_the_state_before_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = StateFile(tmp_path / "state", "mine")
    file.save(STATE)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lorabuild.nn.resume.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        file.save(State({}, {"step": 4}))
    assert caught.value.filename == str(tmp_path / "state")
    assert file.load().facts["step"] == 3 and [path.name for path in tmp_path.iterdir()] == ["state"]


def test_saves_take_at_most_a_twentieth_of_the_time(tmp_path: Path):
    """Each reading of this clock is a second later, so that a save takes one second; so does an update."""
    file = StateFile(tmp_path / "state", "mine", clock=Clock(1.0))
    saves = []
    for update in range(100):
        if file.due():
            file.save(STATE)
            saves.append(update)
    assert saves[0] == 0
    gaps = {later - sooner for sooner, later in pairwise(saves)}
    assert gaps == {REST}
