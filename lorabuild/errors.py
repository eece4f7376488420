"""What a user can do wrong, said in one line: where, what, and a near miss."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


@dataclass(frozen=True, order=True)
class Problem:
    """One finding: `file:line: message`. `file` is relative to the repository; `line` counts from 1, 0 if unknown."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}" if where else self.message


class UserError(Exception):
    """A mistake of the user's: printed as lines, never as a traceback; `exit_code` ends the command."""

    exit_code = 1

    def __init__(self, *problems: Problem | str):
        self.problems = [p if isinstance(p, Problem) else Problem("", 0, p) for p in problems]
        super().__init__("\n".join(map(str, self.problems)))


class ConfigError(UserError):
    """A TOML file is wrong. Holds all problems of all files at once."""

    exit_code = 3


class UsageError(UserError):
    """The command line is wrong: an unknown target, a missing argument."""

    exit_code = 2


class JobError(UserError):
    """A job cannot be done with the inputs that it has: a truncated image, nothing left after a chop."""

    exit_code = 1


class InputMissing(JobError):
    """What a project is made of is not here at all, as in a clone without its data set."""

    def __init__(self, message: Problem | str, what: str):
        super().__init__(message)
        self.what = what  # "its images are"


class Interrupted(Exception):
    """The build was stopped while this job ran, or before. Nobody failed. `kept` says what of it stays: "step 8 of 12".

    `elsewhere`: where it goes on all the same, as it is under way on another machine: "slurm 4242".
    """

    def __init__(self, kept: str = "", elsewhere: str = ""):
        self.kept, self.elsewhere = kept, elsewhere
        super().__init__(kept or elsewhere or "interrupted")


class InputChanged(Exception):
    """A user's file is not what it was when the job's key was made: the job is keyed and run once more."""

    def __init__(self, path: Path):
        self.path = path
        super().__init__(f"{path} changed while it was being read")


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """What goes wrong here is said of the file at `path`: a JobError begins with its name, once."""
    try:
        yield
    except JobError as error:
        start = f"{path}: "
        raise JobError(*(f"{start}{str(one).removeprefix(start)}" for one in error.problems)) from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError that the system raises here without a name is of the file at `path`: a full disk does not say whose write fails."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def told(error: Exception, root: Path | None = None) -> str:
    """What the system or the database says, in one line: `build/ember/train.jsonl: No space left on device`."""
    if isinstance(error, OSError) and error.strerror:
        name = str(error.filename or "").removeprefix(f"{root}{os.sep}")
        return f"{name}: {error.strerror}" if name else error.strerror
    if type(error).__module__ == "sqlite3":  # by name: the face of a file verb has no use for it
        return f".lorabuild/state.sqlite: {error}"
    return f"{type(error).__name__}: {error}"


def near_miss(word: str, candidates: Iterable[str]) -> str:
    """` (did you mean "x"?)` where a candidate is close to `word`, else an empty string."""
    close = nearest(word, candidates)
    return "" if close is None else f' (did you mean "{close}"?)'


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that is most like `word`, if one is close to it."""
    return next(iter(get_close_matches(word, list(candidates), n=1, cutoff=0.6)), None)
