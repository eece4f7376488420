"""Write a training's numbers for TensorBoard, under sd-scripts' tags: to be looked at, and no artifact."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MISSING = "recipe.log_with: TensorBoard is not installed: pip install 'lorabuild[tensorboard]'"
NORMS = {  # of a record -> tag
    "keys_scaled": "max_norm/keys_scaled",
    "max_key_norm": "max_norm/max_key_norm",
    "average_key_norm": "norm/avg_key_norm",
}


def scalars(record: Mapping[str, Any], average: float | None) -> dict[str, float]:
    """Tag -> value of a record of the log. `average` is the mean loss of the last updates."""
    if record["event"] == "held_out":
        found = {"loss/validation/step_average": record["loss"]}
        if average is not None:
            found["loss/validation/step_divergence"] = record["loss"] - average
        return found
    found = {"loss/current": record["loss"], "loss/average": average, "norm/grad_norm": record["grad_norm"]}
    found |= {f"lr/{name}": rate for name, rate in record["lr"].items()}
    found |= {f"lr/d*lr/{name}": rate for name, rate in record.get("d*lr", {}).items()}
    found |= {NORMS[name]: norm for name, norm in record.get("max_norm", {}).items()}
    return {tag: value for tag, value in found.items() if value is not None}  # no number where fp16 overflowed


class Events:
    """One event file of one training; without a folder, none. What cannot be written is one warning, and then nothing is tried any more."""

    def __init__(self, folder: Path | None, asked: bool, warn: Callable[[str], None]):
        self._warn, self._file, self._record = warn, None, None
        if folder is None:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            if asked:
                warn(MISSING)
            return
        self._event, self._summary = Event, Summary
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("events.out.tfevents.*"):  # of a run that was stopped: its steps are written again
                old.unlink()
            now = time.time()
            self._file = open(folder / f"events.out.tfevents.{now:.0f}.{os.getpid()}", "wb")  # noqa: SIM115
            self._record = RecordWriter(self._file)
            self._write(Event(wall_time=now, file_version="brain.Event:2"))
        except OSError as error:
            self._fail(error)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, by tag; they can be seen at once."""
        if self._record is None:
            return
        value = [self._summary.Value(tag=tag, simple_value=number) for tag, number in values.items()]
        try:
            self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=value)))
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # what could not be written is no loss
            self._file = self._record = None

    def _write(self, event: Any) -> None:
        assert self._record is not None
        self._record.write(event.SerializeToString())
        self._record.flush()

    def _fail(self, error: OSError) -> None:
        self._warn(f"no more events for TensorBoard: {error.filename or 'its file'}: {error.strerror or error}")
        self.close()
