"""What the verbs of a repository and its remote share: where it is, which projects are meant, one line if nobody answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorabuild.cli import find_root
from lorabuild.errors import JobError, UsageError, near_miss
from lorabuild.remotes.remote import Remote
from lorabuild.remotes.transport import Unreachable


def repository_root(folder: Path) -> Path:
    """The repository that `folder` lies in. Raises UsageError if it lies in none."""
    if (root := find_root(folder)) is None:
        raise UsageError(
            "no repository here or above: no folder holds lorabuild.toml or projects/*/lora.toml (`lorabuild init` makes one)"
        )
    return root


def chosen(names: Sequence[str], projects: Iterable[str]) -> list[str]:
    """`names`, each once. Raises UsageError with a near miss for one that is no project."""
    for name in names:
        if name not in projects:
            raise UsageError(f"{name}: no such project{near_miss(name, projects)}")
    return list(dict.fromkeys(names))


@contextmanager
def using(remote: Remote | None) -> Iterator[None]:
    """A remote that cannot be reached ends the command: JobError."""
    try:
        yield
    except Unreachable as error:
        where = f"remote store {remote.folder.url}: " if remote else ""
        raise JobError(f"{where}{error}") from error
