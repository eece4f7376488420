"""What doit keeps and prints, as we want it: nothing of either."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from doit.exceptions import TaskFailed, UnmetDependency
from doit.reporter import ZeroReporter

from lorabuild.workers.outcome import not_run


class Memory:
    """doit's database, in memory: staleness is ours, and nothing of doit's is left in the repository."""

    def __init__(self, name: str, codec: Any, module_name: str | None = None):
        self.name = name
        self.rows: dict[str, dict[str, Any]] = {}

    def set(self, task: str, key: str, value: Any) -> None:
        self.rows.setdefault(task, {})[key] = value

    def get(self, task: str, key: str) -> Any:
        return self.rows.get(task, {}).get(key)

    def in_(self, task: str) -> bool:
        return task in self.rows

    def remove(self, task: str) -> None:
        self.rows.pop(task, None)

    def remove_all(self) -> None:
        self.rows.clear()

    def dump(self) -> None:
        pass


class Reporter(ZeroReporter):
    """The engine's face has told all there is to tell of jobs; what is left here are faults of our own."""

    desc = "only what the build itself does not report"

    def initialize(self, tasks: Any, selected_tasks: Any) -> None:
        self.tasks, self.selected, self.done = tasks, selected_tasks, set()

    def add_success(self, task: Any) -> None:
        self.done.add(task.name)

    skip_uptodate = add_success

    def not_run(self, failed: Collection[str]) -> int:
        """How many jobs were neither done nor tried: what failed jobs are needed for, or what comes after a stop."""
        left = not_run(self.selected, lambda name: self.tasks[name].task_dep, {*self.done, *failed})
        return sum(bool(self.tasks[name].actions) for name in left)

    def add_failure(self, task: Any, fail: Any) -> None:
        if not isinstance(fail, TaskFailed | UnmetDependency):
            sys.stderr.write(f"{task.name}: a fault in lorabuild, please report it\n{fail.get_msg()}\n")


DOIT_CONFIG = {
    "reporter": Reporter,
    "verbosity": 2,
    "par_type": "thread",
    "backend": "json",  # for doit's verbs that we do not replace: their file stays out of sight
    "dep_file": ".lorabuild/doit.json",
}
