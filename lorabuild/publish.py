"""Put what the store holds into build/, under its name and with its header; only here does an artifact get a name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError
from lorabuild.files import staged
from lorabuild.hashing import digest_json
from lorabuild.header import read_header
from lorabuild.inputs import Resolved
from lorabuild.metadata import VERSION, body_sha256, metadata
from lorabuild.reasons import Reason, changes
from lorabuild.stage import SOURCE, File, Job
from lorabuild.state import State
from lorabuild.store import Output, Store
from lorabuild.writing import spliced

# stage -> role -> name in build/<project>/; {stem} is the project, or project-variant, {own} what begins the name of a file
# that the project has without it: nothing, or project-variant-. "step/" and "samples/" are families.
NAMES = {
    "dataset": {"dataset.json": "dataset.json"},
    "train": {"weights": "{stem}.safetensors", "step/": "{stem}-step{step:08d}.safetensors", "log": "{own}train.jsonl"},
    "resize": {"weights": "{stem}-resized.safetensors"},
    "chop": {"weights": "{stem}-chopped.safetensors"},
    "samples": {"samples.json": "samples.json", "samples/": "samples/{member}"},
}


@dataclass(frozen=True)
class Made:
    """A job with what it was made of and what it has made: its own key components are what a header tells of it."""

    job: Job
    inputs: Mapping[str, Resolved]
    components: Mapping[str, Any]
    outputs: Mapping[str, Output]


@dataclass(frozen=True)
class Publication:
    """A file that should stand at `path`: the blob as it is, or (`about`) its tensors under a header made from `about`.

    `source` is the user's LoRA that it comes from, if it does, and its digest: its metadata is kept.
    """

    path: Path
    job: str
    output: Output
    about: Mapping[str, Any] | None = None
    source: tuple[Path, str] | None = None

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints, equal bytes: digest of the body, and of all that the header is made of."""
        return f"{self.output.digest}:{digest_json([VERSION, self.about]) if self.about else ''}"


def publications(
    root: Path, job: Job, outputs: Mapping[str, Output], lineage: Mapping[str, Made], project: Mapping[str, Any]
) -> list[Publication]:
    """What `job` shows to the user of its outputs. `project` is the manifest's [project] table."""
    if job.stage == "base":
        folder = base_folder(root, job.target)
        return [Publication(folder / role, job.name, output) for role, output in outputs.items()]
    name = job.target.partition("@")[0]
    found = []
    for role, output in outputs.items():
        path = published_path(root, job, role)
        if path is None:
            continue
        about = None
        if path.suffix == ".safetensors":
            about = _about(path.stem, name, role, project, lineage)
        found.append(Publication(path, job.name, output, about, _source(lineage)))
    return found


def published_path(root: Path, job: Job, role: str) -> Path | None:
    """Where an output of a job of a project is shown to the user; None for one that the store alone keeps."""
    family, _, member = role.rpartition("/")
    pattern = NAMES.get(job.stage, {}).get(f"{family}/" if family else role)
    if pattern is None:
        return None
    name, _, variant = job.target.partition("@")
    stem = f"{name}-{variant}" if variant else name
    own = f"{stem}-" if variant else ""
    file = pattern.format(stem=stem, own=own, member=member, step=int(member) if family == "step" else 0)
    return root / "build" / name / file


def is_published(job: Job) -> bool:
    """Does the user see anything of this job, or does the store alone keep it?"""
    return job.stage == "base" or job.stage in NAMES


def base_folder(root: Path, base: str) -> Path:
    """Where the files of a base stand as a diffusers folder."""
    return root / ".lorabuild" / "base" / base


def _about(stem: str, name: str, role: str, project: Mapping, lineage: Mapping[str, Made]) -> dict[str, Any]:
    """All that an artifact's header is made of: its name, [project], its own key components and its ancestors'."""
    made_by = {
        found.job.stage: {
            "version": found.components["version"],
            "params": found.components["params"],
            "inputs": {role: one.digest for role, one in found.inputs.items()},
        }
        for found in lineage.values()
    }
    by_stage = {found.job.stage: found for found in lineage.values()}
    trained = _trained_role(role, lineage)
    data = by_stage["dataset"].outputs.get("dataset.json") if "dataset" in by_stage else None
    facts = by_stage["train"].outputs.get("facts.json") if trained == "weights" and "train" in by_stage else None
    return {
        "name": stem,
        "project_name": name,
        "trained": trained,
        "project": dict(project),
        "made_by": made_by,
        "dataset": data.digest if data else None,
        "facts": facts.digest if facts else None,  # a snapshot does not know how the training ended
    }


def _told_by_header(about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """[project] and the settings of each stage, each in the form of a key's components."""
    tables = {"project": {"version": VERSION, "params": {"project": about["project"]}}, **about["made_by"]}
    return {part: {**table, "inputs": {}} for part, table in tables.items()}


def _trained_role(role: str, lineage: Mapping[str, Made]) -> str:
    """The output of train that an artifact comes from: "weights", or "step/10"."""
    used = [item for found in lineage.values() for item in found.job.lineage.values()]
    return next((item.role for item in used if item.job.startswith("train:")), role)


def _source(lineage: Mapping[str, Made]) -> tuple[Path, str] | None:
    """The file of the user's that an artifact comes from, and the digest that it was read with."""
    used = [(item, found.inputs[role].digest) for found in lineage.values() for role, item in found.job.inputs.items()]
    files = ((item, digest) for item, digest in used if isinstance(item, File) and item.key == SOURCE)
    return next(((item.path, digest) for item, digest in files), None)


@dataclass(frozen=True)
class Publisher:
    """Writes files into build/ and knows whether they still stand as written."""

    store: Store
    state: State

    def stale(self, publication: Publication) -> str:
        """Why the file must be written: "missing", "changed on disk", "header", …; empty if it stands."""
        row = self.state.published(publication.path)
        try:
            digest = self.state.digest(publication.path)
        except OSError:
            return "missing"
        if row is None:
            return "not known to be ours"
        if digest != row[1]:
            return "changed on disk"
        if row[0] == publication.fingerprint:
            return ""
        return "header" if row[0].partition(":")[0] == publication.output.digest else "other content"

    def publish(self, publication: Publication) -> None:
        """Write the file beside its place, then rename: whoever reads it sees the old one or the new one, whole."""
        blob = self.store.blob(publication.output.digest)
        with staged(publication.path, self.store.parts) as part:
            if publication.about is None:
                shutil.copyfile(blob, part)
            else:
                self._with_header(blob, part, publication)
        digest = self.state.digest(publication.path)
        self.state.set_published(publication.path, publication.job, publication.fingerprint, digest)
        if publication.about is not None:
            self.state.put(f"about:{publication.fingerprint}", json.dumps(publication.about))

    def header_changes(self, publication: Publication, why: str) -> list[Reason]:
        """Which settings a header tells otherwise than the one that stands; none if `why` is not "header"."""
        row = self.state.published(publication.path) if why == "header" else None
        known = self.state.get(f"about:{row[0]}") if row else None
        if known is None or publication.about is None:
            return []
        old, new = (_told_by_header(about) for about in (json.loads(known), publication.about))
        return [reason for part in new if part in old for reason in changes(old[part], new[part])]

    def _with_header(self, blob: Path, part: Path, publication: Publication) -> None:
        about = publication.about
        assert about is not None
        sha256 = body_sha256(blob, publication.output.digest, self.state)
        source = self.metadata_of(*publication.source) if publication.source else None
        header = metadata(about, sha256, self._json(about["dataset"]), self._json(about["facts"]), source)
        with open(part, "wb") as target, open(blob, "rb") as body:
            target.write(spliced(body, header))
            shutil.copyfileobj(body, target, 1 << 20)

    def metadata_of(self, source: Path, digest: str) -> dict[str, str]:
        """The metadata of a user's LoRA as it was when it was read; raises JobError if it has changed since."""
        if (known := self.state.get(f"metadata:{digest}")) is None:
            known = json.dumps(dict(read_header(source).metadata))
            if self.state.digest(source) != digest:
                raise JobError(f"{source}: has changed while it was worked on; build again")
            self.state.put(f"metadata:{digest}", known)
        return json.loads(known)

    def _json(self, digest: str | None) -> Any:
        return json.loads(self.store.blob(digest).read_bytes()) if digest else None

    def retract(self, job: str, wanted: Iterable[Path]) -> Iterator[Path]:
        """Remove what `job` published once and no longer wants, unless somebody has changed it since; the paths."""
        for path, digest in self.state.published_by(job).items():
            if path in wanted:
                continue
            try:
                if self.state.digest(path) == digest:
                    path.unlink()
                    yield path
            except OSError:
                pass  # gone already
            self.state.drop_published(path)
