"""Look at all of it, from the machine to the repository, each part by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorabuild.doctor.devices import look_at_devices
from lorabuild.doctor.disk import look_at_folder, look_at_room
from lorabuild.doctor.line import Line, looked, ok
from lorabuild.doctor.machine import look_at_git, look_at_processor, look_at_python
from lorabuild.doctor.packages import look_at_extras, look_at_packages, look_at_pictures


def examine(root: Path | None, here: Path) -> Iterator[Line]:
    """Lines as they are found. `root`: the repository around the working folder `here`, if there is one."""
    for topic, look in (
        ("python", look_at_python),
        ("packages", look_at_packages),
        ("extras", look_at_extras),
        ("images", look_at_pictures),
        ("processor", look_at_processor),
        ("git", look_at_git),
    ):
        yield from looked(topic, look)
    place = root or here
    yield from looked("disk", lambda: look_at_room(place))
    yield from looked("folder", lambda: look_at_folder(place / ".lorabuild" if root else place))
    yield from looked("repository", lambda: _around(root))
    yield from looked("torch", look_at_devices)  # last: it takes seconds


def _around(root: Path | None) -> Iterator[Line]:
    """What only a repository has. Imported here: what these need may not be installed."""
    from lorabuild.doctor.repository import (
        look_at_bases,
        look_at_executor,
        look_at_files,
        look_at_remote,
        look_at_tokenizers,
    )

    repository: Any = None
    if root is None:
        yield ok("repository", "none here: bases and the remote store are looked at in one")
    else:
        repository, lines = look_at_files(root)
        yield from lines
    if repository:
        yield from looked("base", lambda: look_at_bases(repository))
    yield from looked("tokenizer", lambda: look_at_tokenizers(repository))
    if repository:
        yield from looked("remote", lambda: look_at_remote(repository.store["remote"]))
        yield from looked("executor", lambda: look_at_executor(repository))
