"""The one abstraction: a stage declares jobs and runs them; a job is plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lorabuild.manifest import Repository
    from lorabuild.workspace import Progress, Workspace


MOST_REPEATS = 10_000  # of an image in an epoch


@dataclass(frozen=True)
class Artifact:
    """Output `role` of the job named `job`. "step/" stands for all snapshots that are wanted of it, of which `every` divides
    the step: which they are may be known only when the job before has told."""

    job: str
    role: str
    every: int = 1


@dataclass(frozen=True)
class Component:
    """A part of a base: vae, unet, te1, te2, tokenizer1 or tokenizer2. Its content is what counts, not its file."""

    base: str
    name: str


@dataclass(frozen=True)
class Subset:
    """An image folder. `folder` is absolute; `shown` is what messages call it.

    `settings` are those in which it differs from its data set, sorted by key. With `named`, not its own images count but
    those of the folders `10_ember` in it, each as often and with the class tokens that the name says, as in sd-scripts.
    """

    folder: Path
    shown: str
    repeats: int = 1
    caption_extension: str = ".txt"
    settings: tuple[tuple[str, Any], ...] = ()
    named: bool = False


@dataclass(frozen=True)
class Images:
    """The images of some folders, with their captions if `captions`. Names and order of files do not count."""

    subsets: tuple[Subset, ...]
    captions: bool


SOURCE, INIT = ("project", "source"), ("recipe", "init")  # the keys that name a LoRA


@dataclass(frozen=True)
class File:
    """A LoRA of the user's, which `key` of the manifest names. Its content is what counts; of one that a training continues
    (`recipe.init`) the tensors alone. `shown` is what messages call it."""

    path: Path
    shown: str
    key: tuple[str, str] = SOURCE


@dataclass(frozen=True)
class TextFile:
    """A text of the user's that `key` of the manifest names. Its content is what counts."""

    path: Path
    shown: str
    key: tuple[str, str]


Input = Artifact | Component | Images | File | TextFile


def is_family(role: str) -> bool:
    """Does the role stand for all that begin with it? Which there are, the record tells: "samples/"."""
    return role.endswith("/")


def declared(role: str, roles: Sequence[str]) -> bool:
    """Is the role one of `roles`, or of a family among them?"""
    return role in roles or any(is_family(one) and role.startswith(one) for one in roles)


def present(roles: Sequence[str], outputs: Mapping[str, Any]) -> bool:
    """Are all `roles` among the outputs of a record? A family has the members that are there."""
    return all(is_family(role) or role in outputs for role in roles)


def members(role: str, outputs: Mapping[str, Any]) -> list[str]:
    """The outputs of a record that a role stands for: itself, or its family."""
    return sorted(one for one in outputs if one.startswith(role)) if is_family(role) else [role]


@dataclass(frozen=True)
class Job:
    """One stage x one project (or base) x one variant: one task.

    `params` holds every setting that shapes the result, by table and key, and nothing else: it is hashed.
    `options` (execution, saved set, pictures, logging) reaches `run` and is never hashed: on a CPU it may not change a
    byte of an output at an equal thread count. `outputs` are roles and stand in one record; one that ends in "/" is a family,
    whose members the record lists. `snapshots` are roles too,
    with a record each, kept as soon as they exist: which of them are wanted is not part of the key. Here stand those that
    are known without a look at the inputs; see `Stage.snapshots`.
    """

    name: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Input]
    outputs: Sequence[str]
    snapshots: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return self.name.partition(":")[0]

    @property
    def target(self) -> str:
        """What it is made for: a project, `project@variant`, or a base."""
        return self.name.partition(":")[2]

    @property
    def project(self) -> str | None:
        """None for the jobs of a base, which projects share."""
        return None if self.stage in ("base", "norms") else self.target.partition("@")[0]

    @property
    def lineage(self) -> Mapping[str, Artifact]:
        """Role -> the artifacts that its header tells of. Of another project's weights that it continues, it tells the digest."""
        artifacts = {role: item for role, item in self.inputs.items() if isinstance(item, Artifact)}
        return {
            role: one for role, one in artifacts.items() if Job(one.job, {}, {}, ()).project in (None, self.project)
        }


@dataclass(frozen=True)
class Stage:
    """A step of the build. Raise `version` by hand when equal inputs should give another result.

    `slot`: "gpu" for what keeps a GPU busy, or all cores of a machine without one; such jobs have slots of their own.
    `snapshots(job, read)` are all that are wanted of a job, where that hangs on what `read(role)`, an input artifact, says.
    """

    name: str
    version: int
    jobs: Callable[[Repository], Iterable[Job]]
    run: Callable[[Job, Workspace, Progress], None]
    slot: Literal["cpu", "gpu"] = "cpu"
    snapshots: Callable[[Job, Callable[[str], bytes]], Sequence[str]] | None = None


def dependencies(job: Job, jobs: Mapping[str, Job]) -> list[str]:
    """Those of `jobs` whose results `job` needs, in no particular order and each once. A user's base is made by none."""
    return list(dict.fromkeys(makers(job, jobs).values()))


def makers(job: Job, jobs: Mapping[str, Job]) -> dict[str, str]:
    """Role -> the one of `jobs` that makes this input."""
    found = {}
    for role, item in job.inputs.items():
        if isinstance(item, Artifact):
            found[role] = item.job
        elif isinstance(item, Component) and f"base:{item.base}" in jobs:
            found[role] = f"base:{item.base}"
    return found
