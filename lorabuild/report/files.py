"""What a page of the report is made from: the files, settings and states of one project, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageState:
    """One stage of a project: the job, what a build would make of it, and the record of its last success.

    `state` is fresh, stale, missing, never or fails, as `lorabuild status` says it; `why` are the reasons of what is not
    fresh; `failure` is how it failed in the last build that tried, if it did. `record` holds `seconds`, `made_with`
    (versions, device), `made_from`, `params` and `inputs` of what was built last; None where it never was.
    """

    stage: str
    job: str
    state: str
    why: tuple[str, ...] = ()
    failure: str | None = None
    key: str | None = None
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ProjectFiles:
    """A project, or one of its variants (`name` is then `project@variant`).

    `settings` are resolved, all defaults in; `whence` tells for each dotted key that somebody wrote (`recipe.unet_lr`)
    its `file:line`. `paths`, by role, are None for what is not there:

      trained, resized, chopped, source   .safetensors; published ones with their headers, a source the user's own file
      spectrum, facts                     the store's blobs of the last build
      dataset, log, samples               dataset.json, train.jsonl, samples.json in build/
      pictures                            the folder of samples.json: its "file" entries are relative to it

    `snapshots` are the saved weights that stand in build/, by step. A variant shares what it does not make itself.
    """

    name: str
    root: Path
    settings: Mapping[str, Any]
    whence: Mapping[str, str]
    paths: Mapping[str, Path | None]
    states: Mapping[str, StageState]
    snapshots: Mapping[int, Path] = field(default_factory=dict)
    checked: Mapping[str, Any] | None = None  # what `check` last found: when, findings, tokens of captions
    swept: Mapping[str, Any] = field(default_factory=dict)  # of a variant by [matrix]: key -> value
    variants: Mapping[str, ProjectFiles] = field(default_factory=dict)  # by the variant's own name

    def path(self, role: str) -> Path | None:
        """The file of a role, None where it is not there."""
        return self.paths.get(role)

    @property
    def named(self) -> Mapping[str, ProjectFiles]:
        """The variants that are written by hand: those of a sweep have a section of their own."""
        return {name: one for name, one in self.variants.items() if not one.swept}

    @property
    def project(self) -> str:
        return self.name.partition("@")[0]


def page_name(project: str) -> str:
    """The file of a project's page. No project's name has a dot: one that is called index does not meet the index."""
    return "index.project.html" if project == "index" else f"{project}.html"
