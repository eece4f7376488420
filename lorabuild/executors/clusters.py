"""What executors/slurm.py needs to know of a place where submitit runs jobs: its settings, and three calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lorabuild.errors import JobError
from lorabuild.executors.protocol import Resources

MINUTES = 240.0  # the limit of a job where [executor] has none: Slurm must be told one, and partitions' own are days


@dataclass(frozen=True)
class Settings:
    """[executor.slurm]. `signal_delay_s`: how long before its time limit a job is told; `timeouts`: how often one that
    reached it is queued once more."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    folder: str = ".lorabuild/slurm"
    setup: Sequence[str] = ()
    python: str | None = None
    signal_delay_s: int = 120
    timeouts: int = 10
    sbatch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """Where a job is. `fault`: why it ended, where no other try would mend it."""

    state: Literal["waiting", "running", "over"]
    text: str = ""
    fault: str = ""


class Cluster(Protocol):
    """A place that runs `onnode.run(folder)`. `settle_s`: how long after a job's end its last events may still come to light."""

    settle_s: float

    def submit(self, folder: Path, name: str, resources: Resources) -> str:
        """Hand a job over, and return its id. Raises JobError."""

    def look(self, job_id: str, folder: Path) -> Look:
        """Where it is."""

    def cancel(self, job_id: str) -> None:
        """SIGTERM, and SIGKILL some time after it."""


def submitit() -> Any:
    """The package, which is an extra. Raises JobError."""
    try:
        import submitit
    except ImportError:
        raise JobError("[executor] kind = \"slurm\" needs submitit: pip install 'lorabuild[slurm]'") from None
    return submitit
