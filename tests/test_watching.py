"""Watching a training: what its progress line says, and the events that TensorBoard reads."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lorabuild import progress as progress_module
from lorabuild.events import MISSING, Events, scalars
from lorabuild.progress import PlainFace, clock
from lorabuild.watching import SMOOTHED, Watch


def step(number: int, loss: float | None = 0.5, **more: Any) -> dict[str, Any]:
    lr = {"unet": 3e-4, "textencoder": 1e-4}
    return {"event": "step", "step": number, "loss": loss, "lr": lr, "grad_norm": 2.0, "images": 4, **more}


HELD_OUT = {"event": "held_out", "when": "during", "step": 2, "loss": 0.75}


# tags


def test_the_tags_are_those_of_sd_scripts():
    norms = {"keys_scaled": 3, "max_key_norm": 1.0, "average_key_norm": 0.4}
    assert scalars(step(1, 0.5, **{"max_norm": norms, "d*lr": {"unet": 2e-5}}), 0.6) == {
        "loss/current": 0.5,
        "loss/average": 0.6,
        "lr/unet": 3e-4,
        "lr/textencoder": 1e-4,
        "lr/d*lr/unet": 2e-5,
        "max_norm/keys_scaled": 3,
        "max_norm/max_key_norm": 1.0,
        "norm/avg_key_norm": 0.4,
        "norm/grad_norm": 2.0,
    }
    assert scalars(HELD_OUT, 0.5) == {"loss/validation/step_average": 0.75, "loss/validation/step_divergence": 0.25}
    assert scalars(HELD_OUT, None) == {"loss/validation/step_average": 0.75}


def test_what_overflowed_is_left_out():
    assert "loss/current" not in scalars(step(1, None), 0.5)


# events


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value), as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def watch_in(folder: Path, epoch: Fraction = Fraction(2), warn: Any = print) -> Watch:
    return Watch(lambda done, total, text: None, Events(folder, True, warn), epoch)


def test_tensorboard_reads_what_is_written_at_once(tmp_path: Path):
    watch = watch_in(tmp_path)
    watch.logged({"event": "held_out", "when": "before", "loss": 1.0})
    for number, loss in enumerate([0.4, 0.6, 0.8], 1):
        watch.logged(step(number, loss))
    found = read(tmp_path)
    assert found["loss/current"] == [(1, 0.4), (2, 0.6), (3, 0.8)]
    assert found["loss/average"] == [(1, 0.4), (2, 0.5), (3, 0.6)]
    assert found["loss/epoch_average"] == [(1, 0.5)]
    assert found["loss/validation/step_average"] == [(0, 1.0)]


def test_a_training_that_goes_on_has_each_step_once(tmp_path: Path):
    first = watch_in(tmp_path)
    for number in (1, 2, 3):  # the third is lost with the run: the state is of the second
        first.logged(step(number))
    again = watch_in(tmp_path)
    for number in (1, 2, 3):
        again.logged(step(number, 0.25))
    assert read(tmp_path)["loss/current"] == [(1, 0.25), (2, 0.25), (3, 0.25)]


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path):
    pytest.importorskip("tensorboard")
    (tmp_path / "logs").write_text("a file is in the way")
    warnings: list[str] = []
    watch = watch_in(tmp_path / "logs" / "run", warn=warnings.append)
    watch.logged(step(1))
    watch.logged(step(2))
    assert len(warnings) == 1 and warnings[0].startswith("no more events for TensorBoard: ")


def test_a_disk_that_fills_is_one_warning(tmp_path: Path):
    pytest.importorskip("tensorboard")
    warnings: list[str] = []
    events = Events(tmp_path, False, warnings.append)

    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    events._record.write = full
    events.write(1, {"loss/current": 1.0})
    events.write(2, {"loss/current": 1.0})
    assert warnings == ["no more events for TensorBoard: its file: No space left on device"]


@pytest.mark.parametrize("asked", [True, False])
def test_without_tensorboard_only_who_asked_for_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    warnings: list[str] = []
    Events(tmp_path / "logs", asked, warnings.append).write(1, {"loss/current": 1.0})
    assert warnings == [MISSING] * asked
    assert not (tmp_path / "logs").exists()


# the progress line


def test_the_line_tells_loss_rates_and_speed():
    now, said = [0.0], []
    watch = Watch(lambda *told: said.append(told), Events(None, False, print), Fraction(3), lambda: now[0])
    for number, loss in enumerate([0.5, 0.3], 1):
        now[0] += 2
        watch.logged(step(number, loss))
        watch.progress(number, 9, "")
    watch.logged(HELD_OUT)
    watch.progress(3, 9, "")
    assert said[0] == (1, 9, "loss 0.5000 (mean 0.5000)  lr 0.0003/0.0001  2 images/s")
    assert said[1][2] == "loss 0.3000 (mean 0.4000)  lr 0.0003/0.0001  2 images/s"
    assert "held out 0.7500" in said[2][2]


def test_the_mean_is_over_the_last_updates():
    watch = Watch(lambda *told: None, Events(None, False, print), Fraction(1))
    for number in range(SMOOTHED + 5):
        watch.logged(step(number + 1, 9.0 if number < 5 else 1.0))
    assert watch._average() == 1.0


def test_plain_lines_grow_rare_and_tell_the_time_left(monkeypatch: pytest.MonkeyPatch):
    now, out = [100.0], io.StringIO()
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    face = PlainFace(out)
    face.started("train:ember", ["never built"])
    for done in range(501, 4001):  # it goes on from update 500; two seconds each
        now[0] += 2
        face.progress("train:ember", done, 4000, "loss 0.1")
    lines = out.getvalue().splitlines()[1:]
    assert lines[0] == "train:ember  505/4000  loss 0.1  1:56:30 left"
    assert 60 < len(lines) < 140


def test_a_clock_has_hours():
    assert [clock(seconds) for seconds in (0.4, 65, 3600, 360000)] == ["0:00:00", "0:01:05", "1:00:00", "100:00:00"]
