"""Every job as a task of doit, which orders and selects them."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doit.exceptions import TaskFailed

from lorabuild.engine import Engine
from lorabuild.errors import Interrupted, UserError
from lorabuild.files import remove_empty
from lorabuild.names import REPORT
from lorabuild.session import opened, targets
from lorabuild.stage import dependencies
from lorabuild.stages import STAGES


@dataclass
class Running:
    """The running command. doit calls `task_lorabuild` without arguments: this is where that finds what it needs.

    `wanted`: the projects that it names; None: it must see all. `held` is closed when it ends.
    """

    writes: bool = False
    builds: bool = False
    wanted: Container[str] | None = None
    held: ExitStack = field(default_factory=ExitStack)
    engine: Engine | None = None


running = Running()

FOREIGN = "doit's own `run` is at work, which cannot build LoRAs: `lorabuild init` registers lorabuild's in doit.cfg"


def engine() -> Engine:
    """The engine of the running command, opened when doit first asks for tasks."""
    if running.engine is None:
        running.engine = running.held.enter_context(opened(Path.cwd(), running.writes, running.builds, running.wanted))
    return running.engine


def task_lorabuild() -> Iterator[dict[str, Any]]:
    """Every job as a task `stage:target`, every stage, project and variant as a group."""
    current = engine()
    for stage in STAGES.values():
        yield {"basename": stage.name, "name": None, "doc": _summary(stage.run)}
    for name, job in current.jobs.items():
        yield {
            "basename": job.stage,
            "name": job.target,
            "uptodate": [_Fresh(current, name)],
            "actions": [(_realise, [current, name])],
            "task_dep": dependencies(job, current.jobs),
            "clean": [(clean, [name])],
            "io": {"capture": False},
        }
    known = targets(current.jobs, current.projects)
    variants = {job.target for job in current.jobs.values() if job.project and job.target != job.project}
    for group in [*current.projects, *sorted(variants)]:
        yield {"basename": group, "actions": None, "task_dep": known[group], "doc": f"all of {group}"}
    yield {
        "basename": REPORT,
        "actions": None,
        "doc": "What plain `doit` builds, then pages of it: build/report/index.html",
    }


class _Fresh:
    """doit calls it when all that the job needs is done. A class: doit takes a plain function's arguments as options."""

    def __init__(self, current: Engine, name: str):
        self.current, self.name = current, name

    def __call__(self, task: Any, values: Any) -> bool:
        return self.current.fresh(self.name)


def _realise(current: Engine, name: str) -> Any:
    if not running.builds:  # without the lock, and without an end
        sys.stderr.write(f"{name}: {FOREIGN}\n")
        return TaskFailed(FOREIGN, report=False)
    try:
        current.realise(name)
    except (UserError, Interrupted) as error:
        return TaskFailed(str(error), report=False)
    return True


def clean(name: str, dryrun: bool) -> None:
    """Remove what the job published into build/; the store keeps it, so that a build restores it."""
    current = engine()
    for path in current.state.published_by(name):
        if path.is_relative_to(current.root / "build") and path.exists():
            print(f"{'would remove' if dryrun else 'removed'} {path.relative_to(current.root)}")
            if not dryrun:
                path.unlink()
                remove_empty(path.parent, current.root / "build")


def _summary(function: Any) -> str:
    return (sys.modules[function.__module__].__doc__ or "").strip().splitlines()[0].rstrip(".")
