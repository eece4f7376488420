"""What [executor] says of each stage: whether it goes away, and what a job of it takes there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorabuild.executors.protocol import Resources
from lorabuild.executors.spec import STATE_SECONDS
from lorabuild.stage import Stage


@dataclass(frozen=True)
class Needs:
    """`settings` is the table, `known` all stages, `url` the store's."""

    settings: Mapping[str, Any]
    known: Mapping[str, Stage]
    url: str

    @property
    def stages(self) -> frozenset[str]:
        """What is built away; unless it is said, what needs a GPU."""
        said = self.settings.get("stages")
        return frozenset(said if said is not None else [n for n, stage in self.known.items() if stage.slot == "gpu"])

    @property
    def jobs(self) -> int:
        return self.settings["jobs"]

    @property
    def tries(self) -> int:
        return self.settings["tries"]

    def resources(self, stage: str, processes: int = 1) -> Resources:
        """What one job of `stage` takes, which has so many processes: a GPU each where it has GPUs at all."""
        own = {name: value for name, value in (self.settings.get(stage) or {}).items() if value is not None}
        usual = self.settings["gpus"] if self.known[stage].slot == "gpu" else 0
        gpus = own.get("gpus", usual)
        said = {name: own.get(name, self.settings.get(name)) for name in ("cpus", "memory_gb", "minutes")}
        return Resources(max(gpus, processes) if gpus else 0, said["cpus"], said["memory_gb"], said["minutes"])

    def told(self, stage: str, processes: int = 1) -> dict[str, Any]:
        """What the spec of a job says of the node and of the store."""
        resources = self.resources(stage, processes)
        return {
            "store": self.url,
            "cache": self.settings.get("cache"),
            "models": list(self.settings.get("models") or ()),
            "gpus": resources.gpus,
            "threads": max(1, resources.cpus // (processes if resources.gpus else 1)),
            "state_seconds": STATE_SECONDS,
        }
