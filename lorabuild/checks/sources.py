"""Judge the LoRA files that projects start from or continue, as a build does before it uses them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from lorabuild.errors import JobError
from lorabuild.findings import Finding, of_problems
from lorabuild.inputs import Resolver
from lorabuild.manifest import Repository
from lorabuild.manifest.sources import Sources
from lorabuild.stage import File, Job
from lorabuild.state import State

STARTED, CONTINUED = "LB023", "LB073"


def source_findings(
    repository: Repository, jobs: Iterable[Job], names: Collection[str], state: State
) -> dict[str, set[Finding]]:
    """Project -> what is wrong with its files, each told once though several jobs read it."""
    resolver = Resolver(state, _none, _none, Sources(repository))
    found: dict[str, set[Finding]] = {name: set() for name in names}
    for job in jobs:
        for role, item in job.inputs.items():
            if isinstance(item, File) and job.project in found:
                try:
                    resolver.source(item, job.project)
                except JobError as error:
                    found[job.project].update(of_problems(CONTINUED if role == "init" else STARTED, error.problems))
    return found


def _none(*asked: Any) -> Any:
    raise AssertionError("artifacts and components are not asked for here")
