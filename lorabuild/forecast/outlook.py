"""Foretell what a build would do with each job, by the very look that the build takes, and without building."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lorabuild.assess import Assessment
from lorabuild.engine import Engine
from lorabuild.errors import UserError
from lorabuild.inputs import Resolved, components, key_of
from lorabuild.publish import is_published
from lorabuild.reasons import FEW, RENAMED, Reason, changes
from lorabuild.stage import Job, declared, dependencies, makers

# As the run log will say it. maybe: only if what is made before it comes out otherwise than last time · failed: it
# cannot even be looked at · blocked: what it needs fails
Event = Literal["fresh", "built", "restored", "published", "maybe", "failed", "blocked"]


@dataclass(frozen=True)
class Outlook:
    """What will become of a job. `after` are the jobs before it on whose results that depends.

    `found` is None where the job's key is not known before those are made; `identity` stands for the key then: equal
    ones will have equal keys.
    """

    job: Job
    event: Event
    reasons: tuple[Reason, ...] = ()
    after: tuple[str, ...] = ()
    identity: str = ""
    found: Assessment | None = None

    @property
    def known(self) -> bool:
        """Are its results in the store?"""
        return self.found is not None and not self.found.missing

    @property
    def why(self) -> list[str]:
        """What a line on the job says."""
        after = [f"after {', '.join(self.after)}"] if self.after else []
        return [*(reason.text for reason in self.reasons), *after]


def outlooks(engine: Engine, names: Sequence[str], few: int = FEW) -> dict[str, Outlook]:
    """The jobs `names` and all that they need, in an order in which they can be built. Writes and runs nothing."""
    found: dict[str, Outlook] = {}
    builders: dict[str, str] = {}  # key -> the first job that has it, after which the store has its results
    for name in in_order(names, engine.jobs):
        outlook = _shared(_outlook(engine, name, found, few), builders)
        if outlook.event in ("built", "maybe"):
            builders.setdefault(outlook.identity, name)
        found[name] = outlook
    return found


def in_order(names: Iterable[str], jobs: Mapping[str, Job]) -> list[str]:
    """`names` and all that they need, each once, and after what it needs."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in order:
            for needed in dependencies(jobs[name], jobs):
                visit(needed)
            order[name] = None

    for name in names:
        visit(name)
    return list(order)


def _outlook(engine: Engine, name: str, before: Mapping[str, Outlook], few: int) -> Outlook:
    job = engine.jobs[name]
    needed = [before[one] for one in dependencies(job, engine.jobs)]
    if failing := [one.job.name for one in needed if one.event in ("failed", "blocked")]:
        return Outlook(job, "blocked", after=tuple(failing))
    try:
        if unmade := [one.job.name for one in needed if not one.known]:
            return _later(engine, job, unmade, before, few)
        assessment = engine.assess(name)
    except UserError as error:
        return _failed(job, "; ".join(map(str, error.problems)))
    except (OSError, sqlite3.Error) as error:
        return _failed(job, str(error))
    event = engine.event_of(assessment)
    reasons = tuple(engine.reasons(assessment, few)) if event != "fresh" else ()
    return Outlook(assessment.job, event, reasons, identity=assessment.key, found=assessment)


def _failed(job: Job, said: str) -> Outlook:
    return Outlook(job, "failed", (Reason("store", "", said),))


def _later(engine: Engine, job: Job, unmade: Sequence[str], before: Mapping[str, Outlook], few: int) -> Outlook:
    """A job whose inputs are not all made yet. What is known of it already may be enough to say that it is built."""
    waiting = {role: maker for role, maker in makers(job, engine.jobs).items() if maker in unmade}
    inputs = engine.known_inputs(job.name, job.inputs.keys() - waiting.keys())
    stage = engine.stages[job.stage]
    parts = components(stage.version, job.params, inputs)
    promised = {
        role: Resolved(f"{before[maker].identity} {getattr(job.inputs[role], 'role', role)}")
        for role, maker in waiting.items()
    }
    identity = key_of(stage.name, stage.version, job.params, inputs | promised)
    if (last := engine.state.last(job.name)) is None:
        reasons = [Reason("store", "", "never built")]
    else:
        old = json.loads(last[1])
        known = {role: content for role, content in old["inputs"].items() if not declared(role, [*waiting])}
        reasons = [one for one in changes({**old, "inputs": known}, parts, few) if one != RENAMED]
    return Outlook(job, "built" if reasons else "maybe", tuple(reasons), tuple(unmade), identity)


def _shared(outlook: Outlook, builders: Mapping[str, str]) -> Outlook:
    """One key is built once: whoever has the same one takes what the first has made."""
    if outlook.event != "built" or (builder := builders.get(outlook.identity)) is None:
        return outlook
    event: Event = "restored" if is_published(outlook.job) else "fresh"
    reason = Reason("input", builder, f"made by {builder}: equal inputs")
    return Outlook(outlook.job, event, (reason,), (builder,), outlook.identity)
