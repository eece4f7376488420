"""Tell which jobs' results are in the store already, beside a build that goes on: nothing is written, dropped or run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from lorabuild.assess import Assessment, Assessor
from lorabuild.forecast.outlook import in_order
from lorabuild.stage import Job, dependencies
from lorabuild.store import Output


def stale(current: Assessor, names: Iterable[str]) -> set[str]:
    """Those of `names`, and of what they need, that have to be built, as far as it is known now.

    What needs a job that is built is taken to be built, too, though it may come out as it was. What cannot be looked at is
    built: what is wrong with it is told when its turn comes. Records are believed, and what was looked at in this run is not
    looked at again; so a job costs a look at its record, and images none.
    """
    beside = _Beside(
        **{one.name: getattr(current, one.name) for one in fields(Assessor)} | {"assessed": dict(current.assessed)}
    )
    beside._resolver = replace(current._resolver, artifact=beside._artifact, component=beside._component)
    found: set[str] = set()
    for name in in_order(names, current.jobs):
        job = current.jobs[name]
        if name in current.anew or not found.isdisjoint(dependencies(job, current.jobs)) or not _there(beside, job):
            found.add(name)
    return found


class _Beside(Assessor):
    """Looks as the build does, but for itself: what it notes is seen by nobody else."""

    def whole(self, output: Output) -> bool:
        return True

    def _look(self, found: Assessment) -> Assessment:
        outputs, missing = self._stored(found.job, found.key)
        found = self.assessed[found.job.name] = replace(found, outputs=outputs, missing=missing)
        return found


def _there(beside: Assessor, job: Job) -> bool:
    try:
        if (found := beside.assessed.get(job.name)) is None:
            if beside.state.last(job.name) is None:  # never built here: no need to look
                return False
            found = beside.assess(job.name)
    except Exception:  # of whatever kind: it only foretells
        return False
    return not found.missing
