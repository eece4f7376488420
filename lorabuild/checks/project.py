"""Check a project: its images, captions and batches, its recipe and its prompts; all that is wrong at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.checks.base import CheckedBase
from lorabuild.checks.batches import Bucket, batch_findings, bucket_rows, share_findings
from lorabuild.checks.captions import caption_findings, seen_texts, too_long
from lorabuild.checks.files import Entry, Named, look_into
from lorabuild.checks.images import Placed, place, twins
from lorabuild.checks.pictures import Facts
from lorabuild.checks.prompts import prompt_findings
from lorabuild.checks.tokens import token_counts
from lorabuild.data.emphasis import weighted_parts
from lorabuild.errors import JobError
from lorabuild.findings import Finding, found
from lorabuild.manifest import Project, Repository
from lorabuild.manifest.bases import model_folders
from lorabuild.manifest.layers import shown
from lorabuild.manifest.whence import Whence
from lorabuild.sampling.samples import prompt_file
from lorabuild.stage import Subset
from lorabuild.stages.dataset import image_folders
from lorabuild.state import State
from lorabuild.workers.slots import cuda_devices


@dataclass
class Checked:
    """What was seen of a project. `tokens`: of the caption of each entry, None where they cannot be counted."""

    project: Project
    entries: list[Entry] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)  # by id of the entry
    buckets: list[Bucket] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    adapter: dict[str, Any] | None = None  # modules, parameters, bytes: of one that could be made
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)  # likewise of each training, variants' among them
    snapshots: int = 0  # that its training saves
    memory: dict[str, int] | None = None  # bytes that its training takes of a device, of a base that is not small
    notes: list[str] = field(default_factory=list)  # what else is worth knowing: what was skipped, say

    @property
    def trains(self) -> bool:
        settings = self.project.settings
        return bool(settings["dataset"]) and not settings["project"]["source"]

    @property
    def batches(self) -> int:
        """Of an epoch."""
        return sum(one.batches for one in self.buckets)

    @property
    def base(self) -> str:
        return self.project.settings["project"]["base"]

    def images(self) -> list[dict[str, Any]]:
        """The rows of --json: an image and subset each, but for images that cannot be used."""
        return [
            {
                "path": one.entry.shown,
                "repeats": one.entry.subset.repeats,
                "size": list(one.size),
                "bucket": list(one.place.bucket),
                "resized": list(one.place.resized),
                "crop": list(one.place.crop),
                "tokens": self.tokens.get(id(one.entry)),
            }
            for one in self.placed
        ]


@dataclass(frozen=True)
class Places:
    """Where the keys of a project stand."""

    repository: Repository
    project: Project
    whence: Whence

    @property
    def manifest(self) -> str:
        return shown(self.project.manifest, self.repository.root)

    def of(self, key: str, target: str = "") -> tuple[str, int]:
        """File and line of a key, of its table where nobody wrote it, or the manifest; of the project or of `target`."""
        name, table = target or self.project.name, key.partition(".")[0]
        return self.whence.key(name, key) or self.whence.key(name, table) or (self.manifest, 0)

    def folder(self, number: int, subset: Subset) -> Named:
        """Of the folder of a subset, or of one that holds folders of images."""
        if not subset.named:
            spot = self.whence.subset(self.project.name, number, "image_dir") or (self.manifest, 0)
            return Named("dataset.subset.image_dir", *spot)
        key = "dataset.reg_data_dir" if dict(subset.settings).get("is_reg") else "dataset.train_data_dir"
        return Named(key, *self.of(key))


def begin(places: Places) -> Checked:
    """Look into the project's folders: what there is to decode."""
    checked = Checked(places.project)
    settings = places.project.settings["dataset"] or {}
    for number, subset in enumerate(image_folders(places.repository, places.project)):
        folder = look_into(subset, settings, places.folder(number, subset))
        checked.entries += folder.entries
        checked.findings += folder.findings
    return checked


def finish(checked: Checked, places: Places, facts: Mapping[Path, Facts], base: CheckedBase, state: State) -> None:
    """Judge what was looked at."""
    settings = checked.project.settings
    checked.findings += _presentation(settings["project"], places)
    if settings.get("samples"):
        item = prompt_file(places.repository, places.project)
        checked.findings += prompt_findings(
            item,
            places.of("samples.prompts"),
            lambda texts: _tokens(checked, places, base, state, [_bare(text) for text in texts]),
            settings["recipe"].get("processes", 1) if checked.trains else 1,
        )
    if not settings["dataset"]:
        return
    _place_all(checked, facts, settings["dataset"])
    for entry in _once(checked.entries):
        checked.findings += caption_findings(entry, settings["project"]["trigger"])
    _count_tokens(checked, places, base, state)
    checked.buckets = bucket_rows(checked.placed, settings["recipe"])
    if checked.trains:
        checked.findings += _precision(settings["recipe"], places)
        checked.findings += share_findings(settings["recipe"], *places.of("recipe.processes"))
        checked.findings += batch_findings(checked.buckets, settings["recipe"], *places.of("recipe.train_batch_size"))


def _presentation(project: Mapping[str, Any], places: Places) -> list[Finding]:
    """What a file's metadata should say."""
    file, line = places.of("project.base")
    return [
        found(code, file, f"project.{key}: not set", line)
        for key, code in {"kind": "LB010", "trigger": "LB011"}.items()
        if not project[key]
    ]


def _precision(recipe: Mapping[str, Any], places: Places) -> list[Finding]:
    """Half precision that only a GPU has."""
    if recipe["mixed_precision"] != "fp16" or cuda_devices():
        return []
    said = 'recipe.mixed_precision: "fp16" needs a GPU, and this machine has none; "bf16" and "no" do without'
    file, line = places.of("recipe.mixed_precision")
    return [found("LB074", file, said, line)]


def _place_all(checked: Checked, facts: Mapping[Path, Facts], settings: Mapping[str, Any]) -> None:
    for entry in checked.entries:
        placed, findings = place(entry, facts[entry.path], settings)
        checked.findings += findings  # of a file in two subsets twice the same: told once in the end
        checked.placed += [placed] if placed else []
    checked.findings += twins({one.path: (one.shown, facts[one.path]) for one in checked.entries})


def _count_tokens(checked: Checked, places: Places, base: CheckedBase, state: State) -> None:
    """By the base's tokenizers; of a base that is not usable, more need not be said."""
    if not base.usable or not checked.entries:
        return
    try:
        weighted = checked.project.settings["recipe"].get("weighted_captions", False)
        texts = [[_bare(text) if weighted else text for text in seen_texts(one)] for one in checked.entries]
        flat = [text for own in texts for text in own]
        counted = iter(_tokens(checked, places, base, state, flat))
    except JobError as error:
        file, line = places.of("project.base")
        checked.findings.append(found("LB022", file, f'project.base: "{checked.base}": {error}', line))
        return
    limit = checked.project.settings["dataset"]["max_token_length"]
    for entry, own in zip(checked.entries, texts, strict=True):
        count = max(next(counted) for _ in own)
        checked.tokens[id(entry)] = count
        checked.findings += too_long(entry, count, limit)


def _tokens(checked: Checked, places: Places, base: CheckedBase, state: State, texts: Sequence[str]) -> list[int]:
    """Tokens of each text. Raises JobError where the base has no tokenizers, or is not there."""
    if not base.usable:
        raise JobError(f"base {checked.base} is not whole")
    dirs = model_folders(places.repository)
    return token_counts(places.repository.bases[checked.base], base.path, texts, state, dirs)


def _bare(text: str) -> str:
    """A text without the weights in it: each part is tokenised by itself."""
    return " ".join(part for part, _ in weighted_parts(text))


def _once(entries: Sequence[Entry]) -> list[Entry]:
    """Each caption once, though its folder may be that of several subsets."""
    return list({(entry.path, entry.caption): entry for entry in entries}.values())
