"""`lorabuild verify`: read anew what the store and build/ hold, and tell what is not what it is named or known by."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorabuild.assess import Assessment
from lorabuild.engine import Engine
from lorabuild.hashing import digest_file
from lorabuild.locks.lockfile import NAME, Lines, read, same_recipe
from lorabuild.upkeep.recorded import recorded
from lorabuild.upkeep.roots import places, record_key
from lorabuild.verbs.common import megabytes
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.within import default_jobs, engine_here, jobs_named

HELP = """\
Reads anew every blob of the store that the manifests and locks name, and every file in build/, whatever their times
say. Exit 1 if one is damaged. "Same key, another build" is none: another machine has made other bytes by the same
settings. (Pieces, such as one image's latents, are verified whenever they are used.)"""

# what -> (is it damage, what it means, what mends it)
FINDINGS = {
    "damaged blob": (True, "its bytes are not those that it is named by", "{doit} restores or rebuilds it"),
    "missing blob": (True, "a record names it, and it is not there", "{doit} restores or rebuilds it"),
    "damaged record": (True, "cannot be read", "{doit} restores or rebuilds what it was for"),
    "changed file": (True, "edited or damaged: not as it was written", "{doit} restores it"),
    "missing file": (False, "not there", "{doit} restores it"),
    "unknown file": (False, "not known to be ours", "{doit} writes it anew"),
    "not built": (False, "not built as it stands now", "{doit} builds it"),
    "another build": (False, "same key, another build: the lock has other bytes than this store", "nothing to mend"),
    "lock behind": (False, "the lock has another key", "{doit} writes the line anew"),
    "lock in conflict": (False, "cannot be read", "`doit` writes it anew"),
}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: `what` is of FINDINGS, `where` a path in the repository or a job."""

    what: str
    where: str
    job: str

    @property
    def damage(self) -> bool:
        return FINDINGS[self.what][0]

    def __str__(self) -> str:
        _, meaning, remedy = FINDINGS[self.what]
        about = "" if self.job == self.where else f" ({self.job})"
        return f"{self.what}: {self.where}{about}: {meaning}; {remedy.format(doit=f'`doit {self.job}`')}"


def parser() -> Parser:
    found = Parser(prog="lorabuild verify", description=HELP)
    found.add_argument("names", nargs="*", metavar="NAME", help="a project, a stage or stage:project; all without one")
    found.add_argument("--json", action="store_true", help="the same as JSON")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    with engine_here() as engine:
        names = jobs_named(engine, options.names)
        unbuilt = set() if options.names else {*names} - default_jobs(engine)  # nobody asked for these
        reader = _Reader(say=_say if sys.stderr.isatty() else lambda text: None)
        found = verify(engine, names, reader)
        for one in found:
            if one.damage:  # its stat may not show it: without this the build that is to mend it would not look
                engine.state.forget(engine.root / one.where)
        unbuilt &= {one.job for one in found if one.what == "not built"}
        found = [one for one in found if one.what != "not built" or one.job not in unbuilt]
        names = [name for name in names if name not in unbuilt]
        reader.say("")
    damage = [one for one in found if one.damage]
    whole = sorted({*names} - {one.job for one in found if one.what != "another build"})
    if options.json:
        findings = [asdict(one) | {"damage": one.damage, "message": str(one)} for one in found]
        told = {"files": len(reader.known), "bytes": reader.bytes, "whole": whole, "findings": findings}
        print(json.dumps(told, indent=2))
    else:
        print("".join(f"{one}\n" for one in found) + _summary(len(names), whole, damage, reader))
    return 1 if damage else 0


def verify(engine: Engine, names: Sequence[str], reader: _Reader) -> list[Finding]:
    """All findings about these jobs, damage first."""
    made = recorded(engine, names)
    found = [one for name in names for one in _of_job(engine, name, made.get(name), reader)]
    projects = sorted({project for name in names if (project := engine.jobs[name].project)})
    found += [one for project in projects for one in _of_lock(engine, project, names, made, reader)]
    unique = {(one.what, one.where): one for one in reversed(found)}  # two jobs may have made one blob
    return sorted(unique.values(), key=lambda one: (not one.damage, one.where, one.what))


@dataclass
class _Reader:
    """Reads files, each once, and says how far it is."""

    say: Callable[[str], None]
    known: dict[Path, str | None] = field(default_factory=dict)
    bytes: int = 0

    def digest(self, path: Path) -> str | None:
        """The digest of a file as it is on the disk; None if there is none, or it cannot be read."""
        if path not in self.known:
            self.known[path] = self.again(path)
        return self.known[path]

    def again(self, path: Path) -> str | None:
        try:
            size = path.stat().st_size
            self.say(f"{megabytes(self.bytes)} read; {path.name} …")
            digest = digest_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"unreadable: {error.strerror}"
        self.bytes += size
        return digest


# what can be wrong


def _of_job(engine: Engine, name: str, made: Assessment | None, reader: _Reader) -> Iterator[Finding]:
    if made is None or made.missing:
        yield Finding("not built", name, name)
    if made:
        for key in {record_key(made.key, role) for role in (*made.job.outputs, *made.job.snapshots)}:
            yield from _of_record(engine, key, name)
        for output in made.outputs.values():
            yield from _of_blob(engine, output.digest, name, reader)
    for path, digest in sorted(engine.state.published_by(name).items()):
        yield from _of_file(engine, path, digest, name, reader)
    if made and not made.missing:
        for publication, why in made.unpublished:
            if why == "not known to be ours" and reader.digest(publication.path) is not None:
                yield Finding("unknown file", _shown(engine, publication.path), name)
            elif why == "missing" and engine.state.published(publication.path) is None:
                yield Finding("missing file", _shown(engine, publication.path), name)


def _of_record(engine: Engine, key: str, job: str) -> Iterator[Finding]:
    path = engine.store.record_path(key)
    if path.exists() and engine.store.record(key) is None:
        yield Finding("damaged record", _shown(engine, path), job)


def _of_blob(engine: Engine, digest: str, job: str, reader: _Reader, needed: bool = True) -> Iterator[Finding]:
    path = engine.store.blob(digest)
    now = reader.digest(path)
    if now is None and needed:
        yield Finding("missing blob", _shown(engine, path), job)
    elif now not in (None, digest):
        yield Finding("damaged blob", _shown(engine, path), job)


def _of_file(engine: Engine, path: Path, digest: str, job: str, reader: _Reader) -> Iterator[Finding]:
    now = reader.digest(path)
    if now is None:
        yield Finding("missing file", _shown(engine, path), job)
    elif now != digest:
        # A build that goes on beside us may have written it just now: then it is known by its new digest.
        row = engine.state.published(path)
        if row is None or reader.again(path) != row[1]:
            yield Finding("changed file", _shown(engine, path), job)


def _of_lock(
    engine: Engine, project: str, names: Sequence[str], made: Mapping[str, Assessment], reader: _Reader
) -> Iterator[Finding]:
    path = engine.locks.folders[project] / NAME
    lines = read(path)
    if lines is None:
        yield Finding("lock in conflict", _shown(engine, path), project)
    for name, line in sorted((lines or {}).items()):
        if name in names:
            for key, role, digest in places(line):
                record = engine.store.record(key)
                here = record.outputs.get(role) if record else None
                if here and here.digest != digest:
                    yield Finding("another build", name, name)
                yield from _of_blob(engine, digest, name, reader, needed=False)
            if name in made and made[name].key != line.key:
                yield Finding(_other_key(made[name], lines or {}), name, name)


def _other_key(made: Assessment, lines: Lines) -> str:
    """Why a lock's key is not the job's: because of the bytes of the jobs before it alone, or because of a change."""
    return "another build" if same_recipe(made, lines) else "lock behind"


# what is said


def _shown(engine: Engine, path: Path) -> str:
    return Path(os.path.relpath(path, engine.root)).as_posix()


def _summary(jobs: int, whole: Sequence[str], damage: Sequence[Finding], reader: _Reader) -> str:
    read_ = f"{len(reader.known)} files, {megabytes(reader.bytes)} read"
    return f"{len(whole)} of {jobs} jobs are whole, {len(damage)} damaged files ({read_})"


_shown_at = [0.0]


def _say(text: str) -> None:
    """Show it on one line of the terminal, a few times a second; an empty text at the end clears it."""
    if text and time.monotonic() - _shown_at[0] < 0.2:
        return
    _shown_at[0] = time.monotonic()
    sys.stderr.write(f"\r{text:78.78}" + ("" if text else "\r"))
    sys.stderr.flush()
