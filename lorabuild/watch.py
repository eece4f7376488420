"""Know without loading a project that nothing has changed that it was made from, nor what it has made: all by stat."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lorabuild import __version__
from lorabuild.bases.layout import component_folder
from lorabuild.data.images import named_folders
from lorabuild.data.tokenizers import beside_files
from lorabuild.hashing import digest_json
from lorabuild.manifest import Repository
from lorabuild.manifest.bases import component_places
from lorabuild.manifest.repository import SHARED_FILES, Project
from lorabuild.metadata import VERSION
from lorabuild.scan import GONE, Scan
from lorabuild.signature import GRAIN_NS, Signature, signature
from lorabuild.stage import Component, File, Images, Job, Subset, TextFile
from lorabuild.stages import STAGES
from lorabuild.state import State

PACKAGE = Path(__file__).parent
CODE = (  # not its faces, which decide nothing
    "",
    "bases",
    "data",
    "executors",
    "graph",
    "locks",
    "lora",
    "manifest",
    "manifest/tables",
    "nn",
    "nn/adapters",
    "remotes",
    "sampling",
    "stages",
    "training",
    "workers",
)


@dataclass(frozen=True)
class Sources:
    """What a project was resolved from: files that were read or looked for, and folders that were listed."""

    files: tuple[str, ...]
    folders: tuple[str, ...]

    def look(self, scan: Scan) -> str:
        """A digest of the signatures of all of them."""
        return digest_json([[scan.file(path) for path in self.files], [scan.folder(path) for path in self.folders]])

    def are_young(self, scan: Scan) -> bool:
        return any(map(scan.is_young, (*self.files, *self.folders)))


@dataclass(frozen=True)
class Watch:
    """A project as it was when all of it was fresh."""

    tool: str  # digest of the versions of lorabuild and its stages, and of where the repository lies
    sources: Sources
    looked: str  # at the sources, before anything was read of them
    made: Mapping[str, Signature]  # its artifacts, blobs and records, and those of what it is made from
    jobs: Sequence[str]

    def holds(self, scan: Scan, tool: str, made: dict[str, Signature | None]) -> bool:
        """Is all as it was? `made` remembers the signatures that were looked at in this run."""
        return (
            self.tool == tool
            and self.sources.look(scan) == self.looked
            and all(_signature(path, made) == seen for path, seen in self.made.items())
        )


class Watches:
    """The projects of a repository that need no look, and what is noted of the others so that they need none next time."""

    def __init__(self, root: Path, state: State, scan: Scan):
        self._root, self._state, self._scan = root, state, scan
        self._tool = tool_digest(root, scan)
        self._looked: dict[str, tuple[Sources, str]] = {}  # by project
        self._waited = False
        self._gone: list[str] = []  # manifests that were noted once and are there no more
        for name in SHARED_FILES:  # before they are read
            scan.file(str(root / name))
        scan.folder(str(root / "recipes"))

    def clean(self) -> dict[Path, list[str]]:
        """Manifest -> jobs, of each project of which nothing has changed."""
        made: dict[str, Signature | None] = {}
        found = {}
        for manifest, text in self._state.watched().items():
            watch = _read(text)
            if self._scan.file(str(self._root / manifest)) == GONE:
                self._gone.append(manifest)
            elif watch is not None and watch.holds(self._scan, self._tool, made):
                found[self._root / manifest] = list(watch.jobs)
        return found

    def forget_gone(self) -> None:
        """Drop what is noted of projects whose manifest is gone."""
        for manifest in self._gone:
            self._state.drop_watched(manifest)

    def look(self, repository: Repository, jobs: Mapping[str, Job], needed: Mapping[str, Sequence[str]]) -> None:
        """See what the loaded projects are made from as it is now, before any of it is read; their manifests were read
        after the scan had seen them. `needed`: project -> its jobs and all that they depend on."""
        for name, project in repository.projects.items():
            sources = _sources(repository, project, [jobs[job] for job in needed[name]], self._scan)
            self._looked[name] = sources, sources.look(self._scan)

    def settle(self, project: Project, jobs: Sequence[str], made: Mapping[Path, str | None]) -> None:
        """Note that the project's `jobs` are fresh, and what they have `made`: file -> digest, None for a record.

        Not where something is so young that it may have changed unnoticed since: the next run looks again.
        """
        sources, looked = self._looked[project.name]
        if sources.are_young(self._scan):
            return
        seen: dict[str, Signature] = {}
        for path, digest in made.items():
            if (found := self._seen(path, digest)) is None:
                return
            seen[str(path)] = found
        watch = Watch(self._tool, sources, looked, seen, jobs)
        manifest = project.manifest.relative_to(self._root).as_posix()
        self._state.set_watched(manifest, json.dumps(asdict(watch)))

    def _seen(self, path: Path, digest: str | None) -> Signature | None:
        """The signature of a file of ours as it was digested; None if that is too young, or it is another file."""
        try:
            if digest is None:
                return signature(path)
            while True:
                seen = signature(path)
                if self._state.digest(path) != digest:
                    return None
                if self._state.remembered(path) == seen:
                    return seen
                if self._waited:
                    return None
                # What was written a moment ago is old enough a moment later, and so is all else that this run wrote;
                # where stamps are whole seconds waiting does not help, the next run looks again.
                self._waited = True
                time.sleep(GRAIN_NS / 1e9)
        except OSError:
            return None


def tool_digest(root: Path, scan: Scan) -> str:
    """What of lorabuild itself decides whether a project is fresh; the files too, for those who work on it.

    A copy of a repository brings the state along, with the paths of the files that were looked at.
    """
    code = [scan.folder(str(PACKAGE / folder)) for folder in CODE]
    return digest_json(
        [str(root), __version__, VERSION, {stage.name: stage.version for stage in STAGES.values()}, code]
    )


def _sources(repository: Repository, project: Project, jobs: Sequence[Job], scan: Scan) -> Sources:
    root = repository.root
    files = {root / name for name in SHARED_FILES} | set(project.files)
    for name in {job.project for job in jobs if job.project}:  # itself, and what it continues
        files |= set(repository.projects[name].files)
    folders: set[Path] = set()
    for job in jobs:
        for item in job.inputs.values():
            match item:
                case Images(subsets):
                    for subset in subsets:
                        folders |= {subset.folder, *_within(subset, scan)}
                case File(path) | TextFile(path):
                    files.add(path)
                case Component(base, component):
                    places = component_places(repository, base, component)
                    files |= set(places)
                    folders |= {component_folder(place, component) for place in places if place.is_dir()}
                    if component.startswith("tokenizer"):
                        files |= {one for place in places if place.is_file() for one in beside_files(place)}
    return Sources(*(tuple(sorted(map(str, paths))) for paths in (files, folders)))


def _within(subset: Subset, scan: Scan) -> list[Path]:
    """The folders in the folder of a subset that count; one that is added meanwhile is noticed by the next run."""
    if not subset.named:
        return []
    scan.folder(str(subset.folder))  # before they are listed
    try:
        return [folder for folder, _, _ in named_folders(subset.folder)]
    except OSError:
        return []


def _signature(path: str, made: dict[str, Signature | None]) -> Signature | None:
    if path not in made:
        try:
            made[path] = signature(path)
        except OSError:
            made[path] = None
    return made[path]


def _read(text: str) -> Watch | None:
    """None for what another version has written."""
    try:
        fields = json.loads(text)
        sources = Sources(tuple(fields["sources"]["files"]), tuple(fields["sources"]["folders"]))
        made = {path: tuple(seen) for path, seen in fields["made"].items()}
        return Watch(fields["tool"], sources, fields["looked"], made, fields["jobs"])
    except (ValueError, KeyError, TypeError):
        return None
