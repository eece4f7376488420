"""Open the repository around the working folder for a verb, and find the jobs that its arguments name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

from lorabuild.cli import find_root
from lorabuild.engine import Engine
from lorabuild.errors import UsageError, near_miss
from lorabuild.session import dependencies, opened, targets


def root_here() -> Path:
    """The repository of the working folder. Raises UsageError if there is none."""
    root = find_root(Path.cwd())
    if root is None:
        raise UsageError("no repository here or above: no folder holds lorabuild.toml or projects/*/lora.toml")
    return root


@contextmanager
def engine_here(writing: bool = False) -> Iterator[Engine]:
    """The engine of that repository. What it has to say goes to stderr: stdout is the verb's own."""
    with ExitStack() as stack:
        with redirect_stdout(sys.stderr):
            engine = stack.enter_context(opened(root_here(), writing, False))
        yield engine


def jobs_named(engine: Engine, names: Sequence[str]) -> list[str]:
    """The jobs that targets stand for; all without one. Raises UsageError with a near miss."""
    known = targets(engine.jobs)
    for name in names:
        if name not in known:
            raise UsageError(f"{name}: no such target{near_miss(name, known)}; `doit list --all` shows them")
    return list(dict.fromkeys(job for name in names for job in known[name])) if names else list(engine.jobs)


def default_jobs(engine: Engine) -> set[str]:
    """What a build without targets is for, with all that this needs."""
    ahead = [name for name, job in engine.jobs.items() if job.stage in engine.default]
    found: set[str] = set()
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += dependencies(engine.jobs[name], engine.jobs)
    return found
