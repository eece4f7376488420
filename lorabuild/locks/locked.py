"""Read lock files: under which key each job of a project was built, and what came out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorabuild.errors import ConfigError, InputMissing, Problem, UserError
from lorabuild.names import quoted
from lorabuild.store import Output


@dataclass(frozen=True)
class Line:
    """A line of a lock: the key of a job, and its outputs by role; snapshots, `step/10`, are among them."""

    key: str
    outputs: Mapping[str, Output]


def read_lock(path: Path, shown: str) -> dict[str, Line]:
    """The lines of a lock by job; {} if there is no such file. Raises ConfigError for one that cannot be read."""
    import tomllib  # here, as what is fresh needs no lock

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(Problem(shown, 0, f"cannot be read: {said}; take it from git, or build again")) from None
    try:
        return {job: checked_line(job, line) for job, line in table.items() if ":" in job}
    except (KeyError, TypeError, AttributeError, ValueError):
        said = "is not as lorabuild writes it; take it from git, or build again"
        raise ConfigError(Problem(shown, 0, said)) from None


def checked_line(job: str, line: Mapping) -> Line:
    """A line of the file. Raises ValueError, KeyError, TypeError or AttributeError for what lorabuild does not write."""
    outputs = {role: Output(one["digest"], one["size"]) for role, one in line["outputs"].items()}
    for digest in (line["key"], *(output.digest for output in outputs.values())):
        if len(digest) != 32 or not set(digest) <= set("0123456789abcdef"):  # they become names of files
            raise ValueError(f"{job}: {quoted(digest)} is no digest")
    return Line(line["key"], outputs)


def pull_advice(locks: Mapping[str, Path], remote: str | None, job: str, error: UserError) -> str:
    """What a failed job's line says besides, in a clone that has the lock of a project, but not what it is made of."""
    project = job.partition(":")[2].partition("@")[0]
    if not (isinstance(error, InputMissing) and remote and project in locks):
        return ""
    try:
        lines = read_lock(locks[project], "")
    except ConfigError:
        return ""
    said = f"; {error.what} missing here: `lorabuild pull {project}` restores its artifacts all the same"
    return said if lines else ""
