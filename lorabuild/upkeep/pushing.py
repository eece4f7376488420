"""Upload what the remote store lacks of what is built here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorabuild.assess import records_of
from lorabuild.engine import Engine
from lorabuild.errors import UserError
from lorabuild.remotes.remote import Damaged, Remote
from lorabuild.stage import dependencies, present


@dataclass
class Pushed:
    """What became of each job."""

    uploaded: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)  # the remote has it already
    unbuilt: dict[str, str] = field(default_factory=dict)  # job -> why there is nothing to upload
    bytes: int = 0


def push(engine: Engine, remote: Remote, jobs: Sequence[str]) -> Pushed:
    """Upload the current records of `jobs` and of all that they are made from. Raises Unreachable."""
    done = Pushed()
    for name in with_ancestors(engine, jobs):
        try:
            found = engine.assess(name)
            sizes = [
                remote.put(key, engine.metadata_of_sources(found), mend=True)
                for key, roles in records_of(found.job, found.key).items()
                if present(roles, found.outputs)
            ]
        except (UserError, Damaged) as error:
            done.unbuilt[name] = str(error)
            continue
        if found.missing:
            done.unbuilt[name] = "; ".join(found.missing)
        sent = [size for size in sizes if size is not None]
        if sent:
            done.uploaded.append(name)
            done.bytes += sum(sent)
        elif sizes:
            done.there.append(name)
    return done


def with_ancestors(engine: Engine, jobs: Sequence[str]) -> list[str]:
    """These jobs and what they are made from, in the order in which they are built."""
    found, waiting = set(jobs), list(jobs)
    while waiting:
        more = [name for name in dependencies(engine.jobs[waiting.pop()], engine.jobs) if name not in found]
        found.update(more)
        waiting += more
    return [name for name in engine.jobs if name in found]
