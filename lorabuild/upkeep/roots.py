"""Find what the store must keep: what manifests, lock files of every git ref, and pins name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabuild import git
from lorabuild.engine import Engine
from lorabuild.errors import JobError
from lorabuild.files import staged
from lorabuild.locks.locked import Line
from lorabuild.locks.lockfile import NAME, rows
from lorabuild.upkeep.recorded import recorded

PINS = ".lorabuild/pins"


@dataclass(frozen=True)
class Roots:
    """What must stay: records by key, pinned ones with all their snapshots, and what each lock has where."""

    keys: frozenset[str]
    pinned: frozenset[str]
    locked: frozenset[tuple[str, str, str]]  # key of a record, role, digest

    @property
    def digests(self) -> set[str]:
        """The blobs that locks name, whatever record says so."""
        return {digest for _, _, digest in self.locked}


def roots(engine: Engine, texts: Iterable[str]) -> Roots:
    """The roots of a repository; `texts` are its lock files, wherever they come from."""
    locked = {place for text in texts for _, line in rows(text) for place in places(line)}
    pinned = frozenset(pins(engine.root))
    keys = {*_keys_of_manifests(engine), *(key for key, _, _ in locked), *pinned}
    return Roots(frozenset(keys), pinned, frozenset(locked))


def places(line: Line) -> Iterator[tuple[str, str, str]]:
    """(key of the record, role, digest) of all that a lock's line names: a snapshot has a record of its own."""
    for role, one in line.outputs.items():
        yield record_key(line.key, role), role, one.digest


def record_key(key: str, role: str) -> str:
    """The key of the record that an output stands in."""
    return f"{key}/{role}" if role.startswith("step/") else key


def _keys_of_manifests(engine: Engine) -> Iterator[str]:
    """What each job has now, and what it had when it was built last: an edit that was not built may be taken back."""
    found = recorded(engine)
    for name, job in engine.jobs.items():
        last = engine.state.last(name)
        job = found[name].job if name in found else job
        for key in {*([found[name].key] if name in found else []), *([last[0]] if last else [])}:
            yield key
            yield from (record_key(key, role) for role in job.snapshots)


# lock files


def lock_texts(root: Path) -> Iterator[str]:
    """The lock files of the working folder."""
    for path in sorted((root / "projects").rglob(NAME)):
        if path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def lock_texts_of_refs(root: Path) -> list[str]:
    """The lock files of every branch, tag, remote, stash and work tree, each once. Raises JobError also if git lacks one."""
    with git.objects(root) as objects:
        names = {name for tip in git.tips(root) for _, name in objects.files(tip, "projects", NAME)}
        return [objects.blob(name).decode(errors="replace") for name in sorted(names)]


# pins


def pins(root: Path) -> dict[str, str]:
    """Key -> what it was pinned as. A line a pin: the key, and after a space whatever helps to know it."""
    try:
        found = [line.split(maxsplit=1) for line in (root / PINS).read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return {}
    return {words[0]: words[1] if len(words) > 1 else "" for words in found if words and words[0][0] != "#"}


def pin(engine: Engine, jobs: Sequence[str]) -> Mapping[str, str]:
    """Add what these jobs have now to the pins. Returns what was added. Raises JobError if none of them is built."""
    found = recorded(engine, jobs)
    built = {one.key: name for name, one in found.items() if not one.missing}
    if not built:
        raise JobError(f"{_shown(jobs)}: not built as it stands now: there is nothing to pin (`doit` builds)")
    path = engine.root / PINS
    before = path.read_bytes() if path.exists() else b""  # the user's own lines and comments stay as they are
    if before and not before.endswith(b"\n"):
        before += b"\n"
    known = pins(engine.root)
    new = {key: name for key, name in built.items() if key not in known}
    with staged(path, engine.store.parts) as part:
        part.write_bytes(before + "".join(f"{key} {name}\n" for key, name in new.items()).encode())
    return new


def _shown(jobs: Collection[str]) -> str:
    return ", ".join(sorted(jobs)[:3]) + (", …" if len(jobs) > 3 else "")
