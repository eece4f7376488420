"""Run jobs, one after another, in a process of their own: `python -m lorabuild.worker`, jobs in and events out as JSON lines.

With the path of a job, `python -m lorabuild.worker SPEC.json`, that one alone: see `lorabuild.workers.errand`.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from lorabuild.errors import told
from lorabuild.workers.channel import Channel
from lorabuild.workers.running import held, prepare, run


def main() -> None:
    """Serve until the driver is gone."""
    channel = Channel()
    importlib.import_module("lorabuild.stages")  # while the driver may still be reading manifests
    while True:
        spec = channel.receive()
        channel.job_begins()
        try:
            with _output_to(Path(spec["log"])):
                prepare(spec)
                report = run(spec, channel)
                report["held"] = held()
        except OSError as error:  # there is no room for the log
            report = {"event": "failed", "lines": [told(error)], "held": held()}
        channel.send(report)


class _output_to:  # reads as a phrase: `with _output_to(log)`
    """Send descriptors 1 and 2 to a job's log for a while."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.before = os.dup(2)
        with open(self.path, "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(self.before, 1)
        os.dup2(self.before, 2)
        os.close(self.before)


if __name__ == "__main__":
    if sys.argv[1:]:
        from lorabuild.workers.errand import main as errand

        sys.exit(errand(sys.argv[1:]))
    main()
