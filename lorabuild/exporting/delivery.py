"""Write packages into folders that others use, too: whole files, all or none, and over nothing that is not ours.

The JSON beside the weights remembers, under "lorabuild", where the files come from and what was written: by it the next
export knows its own, and leaves alone what somebody has changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorabuild.errors import JobError
from lorabuild.exporting.packages import Content, Package, json_bytes
from lorabuild.files import remove_leftovers, staged
from lorabuild.hashing import sha256_from

MARK = "lorabuild"  # the key of the JSON that is ours; A1111 keeps keys that it does not know
CHUNK_BYTES = 1 << 20
# there: with these very bytes · kept: somebody has changed it, or made it
Action = Literal["written", "replaced", "there", "kept"]


@dataclass(frozen=True)
class Step:
    """A file of a package, and what is done about it."""

    path: Path
    content: Content
    action: Action
    sha256: str = ""


@dataclass(frozen=True)
class Found:
    """What a JSON in the folder says: its keys, those as they were written, the digest of each file, and if they are ours."""

    values: Mapping[str, Any] = field(default_factory=dict)
    wrote: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    readable: bool = True


def steps(package: Package, force: bool = False) -> list[Step]:
    """What is to be done, the JSON first and the weights last. Raises JobError if another file has the weights' name."""
    found = _read(package)
    weights = _step(package.path, package.source, package.sha256, found, force)
    if weights.action == "kept":
        raise JobError(
            f"{package.path}: is another file, which was not exported from {package.origin}: "
            "--as NAME gives this one another name, --force replaces it"
        )
    others = [
        _step(package.folder / name, content, _digest(content), found, force)
        for name, content in package.sidecars.items()
    ]
    files = {one.path.name: one.sha256 for one in (*others, weights)}
    return [_json_step(package, found, files, force), *others, weights]


def deliver(plans: Iterable[Sequence[Step]]) -> None:
    """Write all files of all packages, each whole; they get their names when the last one is written.

    The weights get theirs before the JSON that remembers them. Raises JobError for a file that changes meanwhile.
    """
    with ExitStack() as stack:
        for step in (step for plan in plans for step in plan if step.action in ("written", "replaced")):
            folder = step.path.parent
            remove_leftovers(step.path, folder)
            part = stack.enter_context(staged(step.path, folder))
            if _write(step.content, part) != step.sha256:
                raise JobError(f"{step.content}: has changed while it was copied; export again")


def _read(package: Package) -> Found:
    """The JSON that stands where the package's is to stand. Ours only if it is of the same origin."""
    try:
        values = json.loads((package.folder / package.card).read_bytes())
    except FileNotFoundError:
        return Found()
    except (OSError, ValueError, RecursionError):
        return Found(readable=False)
    if not isinstance(values, dict):
        return Found(readable=False)
    mark = values.pop(MARK, None)
    if not isinstance(mark, dict) or mark.get("from") != package.origin:
        return Found(values)
    wrote, files = (one if isinstance(one, dict) else {} for one in (mark.get("wrote"), mark.get("files")))
    return Found(values, wrote, files, True)


def _step(path: Path, content: Content, sha256: str, found: Found, force: bool) -> Step:
    if path.is_dir():
        raise JobError(f"{path}: is a folder")
    if not path.exists():  # a link that leads nowhere, as to a disk that is not there, is somebody's, too
        return Step(path, content, "kept" if path.is_symlink() and not force else "written", sha256)
    there = sha256_from(path)
    if there == sha256:
        return Step(path, content, "there", sha256)
    ours = found.ours and found.files.get(path.name) == there
    return Step(path, content, "replaced" if ours or force else "kept", sha256)


def _json_step(package: Package, found: Found, files: Mapping[str, str], force: bool) -> Step:
    """The package's own values, but where somebody has given another since they were written."""
    path, told = package.folder / package.card, dict(package.told)
    if path.is_dir():
        raise JobError(f"{path}: is a folder")
    theirs = {} if force else {key: one for key, one in found.values.items() if found.wrote.get(key, _NONE) != one}
    mark = {"from": package.origin, "files": dict(sorted(files.items())), "wrote": told}
    content = json_bytes({**told, **theirs, MARK: mark})
    if not path.exists():
        return Step(path, content, "written", _digest(content))
    if not found.readable and not force:
        return Step(path, content, "kept", _digest(content))
    same = sha256_from(path) == _digest(content)
    return Step(path, content, "there" if same else "replaced", _digest(content))


_NONE = object()


def _digest(content: Content) -> str:
    return sha256_from(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def _write(content: Content, part: Path) -> str:
    """Write it; the sha256 of what was written."""
    state = hashlib.sha256()
    with open(part, "wb") as target:
        for chunk in _chunks(content):
            state.update(chunk)
            target.write(chunk)
    return state.hexdigest()


def _chunks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with open(content, "rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
