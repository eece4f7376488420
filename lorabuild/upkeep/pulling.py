"""Restore the artifacts of a project by its lock, without what it was made of: images, source, base."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lorabuild.engine import Engine
from lorabuild.errors import ConfigError, JobError, UserError
from lorabuild.inputs import Resolved, components
from lorabuild.locks.locked import Line, read_lock
from lorabuild.publish import Made, publications
from lorabuild.remotes.remote import Damaged, Remote
from lorabuild.remotes.sharing import note_fetched
from lorabuild.stage import Job, declared, members
from lorabuild.store import Output, Record


@dataclass(frozen=True)
class Known(Made):
    """A job that is known by its record alone."""

    made_from: Mapping[str, str]


@dataclass
class Pulled:
    """What became of one project."""

    lines: int = 0
    fetched: list[str] = field(default_factory=list)  # jobs of which something came from the remote
    restored: list[str] = field(default_factory=list)  # files that were written, seen from the repository
    unknown: list[str] = field(default_factory=list)  # in the lock, but no longer in the manifest: nothing has its name
    others: list[str] = field(default_factory=list)  # jobs whose bytes are another build's of the same key
    problems: list[str] = field(default_factory=list)
    bytes: int = 0
    exit_code: int = 1  # if there are problems: 3 for a lock that cannot be read


def pull(engine: Engine, remote: Remote | None, project: str) -> Pulled:
    """Bring all that the lock of `project` lists into the store, and its files into build/. Raises Unreachable.

    Headers are those of the machine that built them: they are made of [project] and of records, which hold what a job's
    key was made of.
    """
    shown = str(engine.lock_files[project].relative_to(engine.root))
    try:
        lines = read_lock(engine.lock_files[project], shown)
    except ConfigError as error:
        return Pulled(problems=[str(problem) for problem in error.problems], exit_code=error.exit_code)
    done = Pulled(len(lines))
    if not lines:
        done.problems.append(f"{shown}: no such file, or empty: build {project} once where its images are")
    before = remote.received if remote else 0
    made: dict[str, Known] = {}
    done.unknown += sorted(lines.keys() - engine.jobs.keys())
    for name in (name for name in engine.jobs if name in lines):
        try:
            made[name] = _brought(engine, remote, name, lines[name], done)
        except (UserError, Damaged) as error:
            done.problems.append(f"{name}: {error}")
    for name in [name for name in made if name in lines]:
        try:
            done.restored += _published(engine, remote, name, made, done)
        except (UserError, Damaged, OSError) as error:
            done.problems.append(f"{name}: {error}")
    done.bytes = remote.received - before if remote else 0
    return done


def _brought(engine: Engine, remote: Remote | None, name: str, line: Line, done: Pulled) -> Known:
    """The records of a line, with their blobs, in the store."""
    job = engine.jobs[name]
    steps = [role for role in line.outputs if not declared(role, job.outputs)]
    first = _record(engine, remote, line.key, job.outputs, name, done)
    rest = [_record(engine, remote, f"{line.key}/{role}", [role], name, done) for role in steps]
    outputs = {role: output for record in (first, *rest) for role, output in record.outputs.items()}
    if any(outputs[role] != output for role, output in line.outputs.items()):
        done.others.append(name)
    found = _known(job, first, outputs)
    engine.state.set_last(name, line.key, json.dumps(found.components))
    return found


def _record(engine: Engine, remote: Remote | None, key: str, roles: Sequence[str], name: str, done: Pulled) -> Record:
    """The record of `key`, all its outputs in the store. Raises JobError if it is neither here nor on the remote."""
    record = engine.store.record(key)
    if record is not None and _whole(engine, record, roles):
        return record
    shared = remote.fetch(key, roles) if remote else None
    if shared is None:
        where = f"nor on {remote.folder.url}" if remote else "and no [store] remote is named"
        raise JobError(f"not in the store here, {where}")
    note_fetched(shared, engine.state, engine.store)
    done.fetched += [name] * (name not in done.fetched)
    return shared.record


def _whole(engine: Engine, record: Record, roles: Sequence[str]) -> bool:
    wanted = [one for role in roles for one in members(role, record.outputs)]
    return all(role in record.outputs and engine.whole(record.outputs[role]) for role in wanted)


def _known(job: Job, record: Record, outputs: Mapping[str, Output]) -> Known:
    """What a header tells of a job, out of its record instead of its inputs."""
    inputs = {role: Resolved(digest) for role, digest in record.inputs.items()}
    parts = components(record.version, record.params, inputs)
    return Known(job, inputs, parts, outputs, record.made_from)


def _published(engine: Engine, remote: Remote | None, name: str, made: dict[str, Known], done: Pulled) -> Iterator[str]:
    """Write those files of a job that do not stand as they should."""
    job, found = engine.jobs[name], made[name]
    lineage = _lineage(engine, remote, name, made, done)
    project = engine.projects.get(job.target.partition("@")[0], {})
    for publication in publications(engine.root, job, found.outputs, lineage, project):
        if engine.publisher.stale(publication):
            engine.publisher.publish(publication)
            yield str(publication.path.relative_to(engine.root))


def _lineage(
    engine: Engine, remote: Remote | None, name: str, made: dict[str, Known], done: Pulled
) -> dict[str, Known]:
    """The job and its ancestors by name. One that is not in the lock is found by the record of what was made from it."""
    lineage = {name: made[name]}
    for role, item in engine.jobs[name].lineage.items():
        if item.job not in made:
            key = made[name].made_from.get(role, "").partition("/")[0]
            if not key:
                raise JobError(f"{item.job}, of which its header tells, is not in the lock")
            parent = engine.jobs[item.job]
            record = _ancestor(engine, remote, key, parent, done)
            made[item.job] = _known(parent, record, record.outputs)
        lineage |= _lineage(engine, remote, item.job, made, done)
    return lineage


def _ancestor(engine: Engine, remote: Remote | None, key: str, job: Job, done: Pulled) -> Record:
    """The record of an ancestor. Where its blobs are damaged or gone, the record alone: most headers tell no more of it."""
    try:
        return _record(engine, remote, key, job.outputs, job.name, done)
    except (JobError, Damaged):
        shared = remote.record(key) if remote else None
        if record := engine.store.record(key) or (shared and shared.record):
            return record
        raise
