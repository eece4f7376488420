"""Keep `lora.lock` beside each manifest: key, digests and sizes of what its jobs made, for git, `pull`, `gc` and `diff`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from lorabuild.files import staged
from lorabuild.inputs import Resolved, key_of
from lorabuild.locks.locked import Line, checked_line
from lorabuild.stage import Artifact, Job
from lorabuild.store import Output
from lorabuild.tomltext import key_written, text_written

NAME = "lora.lock"
COMMENT = """\
# Written by lorabuild, one line a job: what a build made under which key. Keep it in git, do not edit it: it is derived.
# `lorabuild pull` restores what it names from a store, `doit` builds it. In a merge conflict run `doit`: it mends the file.
"""


Lines = dict[str, Line]  # by job


class Made(Protocol):
    """What the engine knows of a job that is built."""

    job: Job
    key: str
    inputs: Mapping[str, Resolved]
    components: Mapping
    outputs: Mapping[str, Output]


# the file


def read(path: Path) -> Lines | None:
    """The lines of a lock file; {} if there is none; None if it cannot be read (a merge conflict, say)."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None


def parse(text: str) -> Lines:
    """The lines of a lock file's text. Raises ValueError for what is no lock file."""
    import tomllib

    try:
        return {job: checked_line(job, line) for job, line in tomllib.loads(text).items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a lock file: {error}") from None


def rows(text: str) -> list[tuple[str, Line]]:
    """Every line of a text that is a lock file, or one in conflict: then those of both sides."""
    found: list[tuple[str, Line]] = []
    for row in text.splitlines():
        try:
            found += parse(row).items()
        except ValueError:
            continue
    return found


def salvage(text: str) -> Lines:
    """Of a text that is in conflict, the lines that both sides have alike."""
    found: dict[str, list[Line]] = {}
    for job, line in rows(text):
        found.setdefault(job, []).append(line)
    return {job: lines[0] for job, lines in found.items() if all(line == lines[0] for line in lines)}


def text_of(lines: Lines) -> str:
    """The file of these lines: sorted, and equal for equal lines."""
    return COMMENT + "".join(f"{text_written(job)} = {_line(line)}\n" for job, line in sorted(lines.items()))


def _line(line: Line) -> str:
    outputs = (
        f'{key_written(role)} = {{ digest = "{one.digest}", size = {one.size} }}'
        for role, one in sorted(line.outputs.items())
    )
    return f'{{ key = "{line.key}", outputs = {{ {", ".join(outputs)} }} }}'


# which line a job has


def line_of(made: Made, lines: Lines) -> Line:
    """The line that `made` should have where a lock has `lines`. What another machine wrote of the same stays.

    A GPU, or another number of threads, makes other bytes under the same key. Its key stays, with its digests, and so do
    the keys after it that differ by nothing but those bytes.
    """
    was = lines.get(made.job.name)
    if was is None or not same_recipe(made, lines):
        return Line(made.key, dict(made.outputs))
    if was.outputs.keys() == made.outputs.keys():
        return was
    return replace(was, outputs={role: was.outputs.get(role, one) for role, one in made.outputs.items()})


def same_recipe(made: Made, lines: Lines) -> bool:
    """Has the job's line the key of `made`, or the one that it has where the jobs before it made the bytes of `lines`?"""
    was = lines[made.job.name].key
    if was == made.key:
        return True
    theirs = {role: replace(one, digest=_theirs(made, role, lines) or one.digest) for role, one in made.inputs.items()}
    return was == key_of(made.job.stage, made.components["version"], made.job.params, theirs)


def _theirs(made: Made, role: str, lines: Lines) -> str | None:
    """The digest that the lock has for an input."""
    item = made.job.inputs[role]
    line = lines.get(item.job) if isinstance(item, Artifact) else None
    output = line.outputs.get(item.role) if line and isinstance(item, Artifact) else None
    return output.digest if output else None


# all lock files of a repository


def named_jobs(jobs: Mapping[str, Job], project: str) -> dict[str, list[str]]:
    """The jobs of a project, each with the jobs of no project (norms) that it takes an artifact of."""
    own = [job for job in jobs.values() if job.project == project]
    return {job.name: [one for one in _takes(job) if one in jobs and jobs[one].project is None] for job in own}


def _takes(job: Job) -> Iterable[str]:
    return dict.fromkeys(item.job for item in job.inputs.values() if isinstance(item, Artifact))


@dataclass
class Locks:
    """The lock files of one build: told of each job that stands, it writes a file only where a line must change.

    Not `kept` (a command that only reads): nothing is read or written. `flush` at the end writes what waits.
    """

    folders: Mapping[str, Path]  # project -> its folder
    jobs: Mapping[str, Job]
    parts: Path
    warn: Callable[[str], None] = lambda text: None
    kept: bool = True
    _made: dict[str, Made] = field(default_factory=dict)
    _files: dict[str, Lines] = field(default_factory=dict)  # by project, as they should be
    _names: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _mutex: threading.RLock = field(default_factory=threading.RLock)

    def note(self, made: Made, now: bool) -> None:
        """A job stands as `made` tells. `now`: it has just been built or restored, so that its line must outlive a kill.

        Raises OSError where the file cannot be written.
        """
        if not self.kept:
            return
        with self._mutex:
            self._made[made.job.name] = made
            project = made.job.project
            if project is None:
                return
            lines = self._lines(project)
            for name in (*self._names[project][made.job.name], made.job.name):
                if name in self._made and lines.get(name) != (line := line_of(self._made[name], lines)):
                    lines[name] = line
                    self._waiting.add(project)
            if now:
                self._write(project)

    def flush(self) -> None:
        """Write what the jobs that were found fresh have changed. Raises OSError."""
        with self._mutex:
            for project in sorted(self._waiting):
                self._write(project)

    def _lines(self, project: str) -> Lines:
        """The lines of a project's lock, without those of jobs that are no more."""
        if project not in self._files:
            path = self.folders[project] / NAME
            lines = read(path)
            if lines is None:
                self.warn(f"{path.parent.name}/{NAME} is in conflict or damaged: it is derived, and written anew")
                lines = salvage(_text(path))
                self._waiting.add(project)
            names = self._names[project] = named_jobs(self.jobs, project)
            known = {*names, *(name for others in names.values() for name in others)}
            self._files[project] = {job: line for job, line in lines.items() if job in known}
            if self._files[project].keys() != lines.keys():
                self._waiting.add(project)
        return self._files[project]

    def _write(self, project: str) -> None:
        if project in self._waiting:
            with staged(self.folders[project] / NAME, self.parts) as part:
                part.write_bytes(text_of(self._files[project]).encode())
            self._waiting.discard(project)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
