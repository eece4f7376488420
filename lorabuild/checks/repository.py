"""Check a repository: every project that can be read, the bases that they use, and what is wrong with the TOML files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorabuild.checks.base import CheckedBase, check_base, pin_findings
from lorabuild.checks.files import Entry
from lorabuild.checks.outputs import memory_findings, output_findings, room_findings, snapshot_count
from lorabuild.checks.pictures import look_at
from lorabuild.checks.project import Checked, Places, begin, finish
from lorabuild.checks.recipe import Task, Trials, Tried, tried_findings
from lorabuild.checks.sources import source_findings
from lorabuild.errors import Problem, UsageError, near_miss
from lorabuild.findings import Finding, at_levels, of_problems
from lorabuild.manifest import Repository
from lorabuild.manifest.keys import result_keys
from lorabuild.manifest.repository import survey
from lorabuild.manifest.targets import makers
from lorabuild.manifest.whence import Whence
from lorabuild.memory import card_bytes
from lorabuild.session import jobs_of
from lorabuild.stage import Component, Job
from lorabuild.state import State
from lorabuild.training.memory import CONTEXT, Model, needs, remedy

SMALL = 10**8  # parameters of a U-Net
Told = Callable[[int, int], None]  # pictures looked at, of so many


@dataclass(frozen=True)
class Report:
    """All that was found: by project (also of those whose manifest cannot be read), and of no project."""

    projects: dict[str, Checked]
    findings: dict[str, list[Finding]]
    others: list[Finding]

    @property
    def exit_code(self) -> int:
        """3: a TOML file is wrong · 1: another error · 0."""
        found = [*self.others, *(one for findings in self.findings.values() for one in findings)]
        return 3 if any(one.code == "LB001" for one in found) else int(any(one.level == "error" for one in found))


def check(root: Path, names: Sequence[str], state: State, told: Told = lambda done, of: None) -> Report:
    """Check the named projects, or all. Raises UsageError for a project that does not exist."""
    repository, problems = survey(root, state)
    wrong = _by_project(root, problems)
    others = of_problems("LB001", (one for one in problems if one.file not in _manifests(wrong)))
    findings = {name: of_problems("LB001", found) for name, found in wrong.items()}
    if repository is None:
        return Report({}, dict(sorted(findings.items())), others)
    _all_known(names, [*repository.projects, *wrong])
    chosen = [name for name in repository.projects if name in names or not names]
    projects, found = _checked(repository, chosen, state, told)
    for name, one in projects.items():
        findings[name] = [*findings.get(name, []), *at_levels(one.findings, _levels(one))]
    return Report(projects, dict(sorted(findings.items())), at_levels([*others, *found], {}))


def _checked(
    repository: Repository, names: Sequence[str], state: State, told: Told
) -> tuple[dict[str, Checked], list[Finding]]:
    """The projects, and findings of none."""
    whence = Whence(repository)
    places = {name: Places(repository, repository.projects[name], whence) for name in names}
    jobs = jobs_of(repository)
    bases = _bases(repository, jobs.values(), names, whence)
    projects = {name: begin(one) for name, one in places.items()}
    trials = Trials(_tasks(projects, bases), state)  # beside what follows
    try:
        _judge(projects, places, bases, state, told)
        for name, one in source_findings(repository, jobs.values(), names, state).items():
            projects[name].findings += one
        _try_out(projects, places, trials.outcome())
        for name, one in projects.items():
            if one.adapter:
                one.snapshots = snapshot_count(jobs[f"train:{name}"], one.batches)
                saved = {target: snapshot_count(jobs[f"train:{target}"], one.batches) + 1 for target in one.adapters}
                size = sum(adapter["bytes"] * saved[target] for target, adapter in one.adapters.items())
                one.findings += room_findings(repository.root, size, *places[name].of("recipe.save_every_n_steps"))
                _reckon_memory(one, places[name])
    finally:
        trials.close()
    found = [one for base in bases.values() for one in base.findings]
    for name, base in bases.items():
        if base.path:
            found += pin_findings(repository, name, base.path, state, whence)
    return projects, [*found, *output_findings(repository.root, ["build", ".lorabuild"])]


def _reckon_memory(checked: Checked, places: Places) -> None:
    """What the training takes of a device; of a base as small as the built-in one nobody asks."""
    adapter, recipe = checked.adapter, checked.project.settings["recipe"]
    if not adapter or not checked.buckets or adapter["networks"]["unet"] < SMALL:
        return
    model = Model(*(adapter[key] for key in ("networks", "width", "parameters", "whole")))
    pixels = max(width * height for width, height in (one.size for one in checked.buckets))
    checked.memory = needs(recipe, model, pixels)
    card = card_bytes()
    help = remedy(recipe, model, pixels, card - CONTEXT) if card else ""
    checked.findings += memory_findings(checked.memory, card, help, *places.of("recipe.train_batch_size"))


def _judge(
    projects: Mapping[str, Checked],
    places: Mapping[str, Places],
    bases: Mapping[str, CheckedBase],
    state: State,
    told: Told,
) -> None:
    """Decode all images, then go through the projects."""
    paths = [entry.path for entry in _entries(projects.values())]
    count = len(set(paths))
    facts = look_at(paths, state, lambda done: told(done, count))
    for name, checked in projects.items():
        finish(checked, places[name], facts, bases[checked.base], state)
        checked.findings += of_problems(
            "LB002", [w for w in places[name].repository.warnings if w.file == places[name].manifest]
        )


def _tasks(projects: Mapping[str, Checked], bases: Mapping[str, CheckedBase]) -> dict[str, Task]:
    """The recipes to try: of what is trained here, on a base that is whole."""
    return {
        target: Task(result_keys(settings, "recipe"), bases[checked.base].path)
        for checked in projects.values()
        if checked.trains and bases[checked.base].usable
        for target, settings in _trainings(checked)
    }


def _trainings(checked: Checked) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A project, and those of its variants that are trained by themselves, with their settings."""
    for target, users in makers(checked.project, "train").items():
        yield target, next(iter(users.values()))


def _try_out(projects: Mapping[str, Checked], places: Mapping[str, Places], tried: Mapping[str, Tried]) -> None:
    for name, checked in projects.items():
        if name in tried:
            checked.adapter = tried[name]["adapter"]
            for target, _ in _trainings(checked):
                if tried[target]["adapter"]:
                    checked.adapters[target] = tried[target]["adapter"]
                found = tried_findings(tried[target], partial(places[name].of, target=target))
                checked.findings += [one for one in found if one not in checked.findings]
        elif checked.trains:
            checked.notes.append(f"adapter, optimizer and schedule are not tried: base {checked.base} is not whole")


def _bases(
    repository: Repository, jobs: Iterable[Job], names: Collection[str], whence: Whence
) -> dict[str, CheckedBase]:
    """The bases of these projects, each judged by the parts of it that any of their jobs reads."""
    parts: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        for item in job.inputs.values():
            if isinstance(item, Component) and (job.project is None or job.project in names):
                parts[item.base].add(item.name)
    used = {repository.projects[name].settings["project"]["base"] for name in names}
    return {base: check_base(repository, base, parts[base], whence) for base in sorted(used)}


def _entries(projects: Iterable[Checked]) -> Iterable[Entry]:
    return (entry for checked in projects for entry in checked.entries)


def _levels(checked: Checked) -> dict[str, str]:
    return (checked.project.settings.get("check") or {}).get("levels", {})


def _by_project(root: Path, problems: Iterable[Problem]) -> dict[str, list[Problem]]:
    """The problems of manifests, by project."""
    found: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        if (path := root / problem.file).name == "lora.toml":
            found[path.parent.name].append(problem)
    return dict(found)


def _manifests(wrong: dict[str, list[Problem]]) -> set[str]:
    return {problem.file for found in wrong.values() for problem in found}


def _all_known(names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"check: {name}: no such project{near_miss(name, known)}")
