"""Open the repository around the working folder, also to change it, and find the jobs that a verb's arguments name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout

from lorabuild.engine import Engine
from lorabuild.session import opened, selected
from lorabuild.stage import dependencies
from lorabuild.verbs.reading import reading, root_here


@contextmanager
def engine_here(writing: bool = False) -> Iterator[Engine]:
    """The engine of that repository. Who waits for the lock is told on stderr: stdout is the verb's own."""
    if not writing:
        with reading() as engine:
            yield engine
        return
    with ExitStack() as stack:
        with redirect_stdout(sys.stderr):
            engine = stack.enter_context(opened(root_here(), writing=True, building=False))
        yield engine


def jobs_named(engine: Engine, names: Sequence[str]) -> list[str]:
    """The jobs that targets stand for; all without one. Raises UsageError with a near miss."""
    return selected(names, engine) if names else list(engine.jobs)


def default_jobs(engine: Engine) -> set[str]:
    """What a build without targets is for, with all that this needs."""
    ahead = selected((), engine)
    found: set[str] = set()
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += dependencies(engine.jobs[name], engine.jobs)
    return found
