"""Find a job's inputs and their digests: a key is made of these, and of nothing that is not content."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorabuild.components import tensors_digest
from lorabuild.data.images import EXTENSIONS, NOT_UTF8, caption_path, list_images, named_folders
from lorabuild.data.prompts import read_prompts
from lorabuild.errors import InputMissing, JobError
from lorabuild.findings import one_line
from lorabuild.hashing import digest_json
from lorabuild.manifest.sources import Sources
from lorabuild.stage import INIT, MOST_REPEATS, Artifact, Component, File, Images, Input, Job, Subset, TextFile
from lorabuild.state import State
from lorabuild.workspace import ImageFile


@dataclass(frozen=True)
class Resolved:
    """One input: its digest, where a worker finds it, and for `why` what it was by name."""

    digest: str
    path: Path | None = None
    images: list[ImageFile] = field(default_factory=list)
    told: tuple[
        str, ...
    ] = ()  # where it came from: ("input", job, role), ("base", name), ("file", path), ("text", path, key)

    @property
    def by_name(self) -> str | dict[str, str]:
        """For `why`: the digest, or for image folders the digest of each file by its shown name."""
        if not self.images:
            return self.digest
        names = {image.shown: image.digest for image in self.images}
        names |= {str(Path(i.shown).with_suffix(i.caption.suffix)): i.caption_digest for i in self.images if i.caption}
        return names


@dataclass(frozen=True)
class Resolver:
    """Looks inputs up: artifacts and components through what the jobs before have left, images by their stat.

    A folder is looked at once a run, so that all jobs of the run see the same files in it.
    """

    state: State
    artifact: Callable[[str, str], tuple[str, Path]]  # job, role -> digest, file in the store
    component: Callable[[str, str], tuple[str, Path]]  # base, component -> digest, folder of the base
    sources: Sources | None = None  # judges the LoRAs that projects start from
    _folders: dict[Subset, list[ImageFile]] = field(default_factory=dict)

    def forget_images(self) -> None:
        """Look at the folders again: a file in them has changed."""
        self._folders.clear()

    def resolve(self, job: Job) -> dict[str, Resolved]:
        """All inputs of `job` by role. Raises JobError for a missing image folder or an unreadable file."""
        return {role: self._one(item, job) for role, item in job.inputs.items()}

    def source(self, item: File, project: str) -> str:
        """The digest of a LoRA that a project starts from or continues. Raises JobError, at its line, for what is none."""
        assert self.sources is not None
        try:
            if said := self.sources.fault(item.path, item.key):
                raise JobError(said)
            digest = self.content(item)
            if self.state.get(f"lora:{digest}") is None:
                _check_lora(item)
                self.state.put(f"lora:{digest}", "SDXL")
            return digest
        except JobError as error:
            said = str(error).removeprefix(f"{item.shown}: ").removeprefix(f"{item.path}: ")
            problem = self.sources.problem(project, said, item.key)
            what = f"its {item.key[1]} is"
            raise (JobError(problem) if item.path.exists() else InputMissing(problem, what)) from None

    def content(self, item: File) -> str:
        """The digest of what counts of a LoRA. Raises JobError."""
        try:
            if item.key != INIT:  # its metadata is passed on
                return self.state.digest(item.path)
            return self.state.digest_of([item.path], "tensors", lambda: tensors_digest(item.path))
        except OSError as error:
            raise JobError(f"{item.shown}: {error.strerror}") from None

    def _one(self, item: Input, job: Job) -> Resolved:
        match item:
            case Artifact(job, role):  # a family has become its members: see Assessor.with_members
                digest, path = self.artifact(job, role)
                return Resolved(digest, path, told=("input", job, role))
            case Component(base, name):
                digest, folder = self.component(base, name)
                return Resolved(digest, folder, told=("base", base))
            case Images():
                return self._images(item)
            case File(path, shown):
                return Resolved(self.source(item, job.project), path, told=("file", shown))
            case TextFile(path, shown, key):
                return Resolved(self._text(item, job.project), path, told=("text", shown, ".".join(key)))

    def check_text(self, item: TextFile, project: str) -> None:
        """Raises JobError, all at their lines, for what is wrong with a file of prompts."""
        self._text(item, project)
        read_prompts(item.path, item.shown)

    def _text(self, item: TextFile, project: str) -> str:
        """The digest of a text. Raises JobError, at the line that names it, if it cannot be read."""
        try:
            return self.state.digest(item.path)
        except OSError as error:
            said = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or "cannot be read"
            if self.sources is None:
                raise JobError(f"{item.shown}: {said}") from None
            raise JobError(self.sources.problem(project, f"{said} ({item.shown})", item.key)) from None

    def _images(self, item: Images) -> Resolved:
        found = [
            replace(image, subset=number) for number, subset in enumerate(item.subsets) for image in self._files(subset)
        ]
        if not item.captions:  # the pictures alone: how often and with what words does not count
            found = [replace(image, caption=None, caption_digest=None, repeats=1, settings={}) for image in found]
        return Resolved(images_digest(found, item.captions), images=found)

    def _files(self, subset: Subset) -> list[ImageFile]:
        if (found := self._folders.get(subset)) is None:  # another thread may forget it at any moment
            if subset.named:
                found = [image for one in named_subsets(subset) for image in self._files(one)]
            else:
                found = self._all(subset)
            self._folders[subset] = found
        return found

    def _all(self, subset: Subset) -> list[ImageFile]:
        """The images of a folder. Raises one JobError for all files that cannot be read."""
        found, problems = [], []
        for path in _listed(subset):
            try:
                found.append(self._image(path, subset))
            except JobError as error:
                problems += error.problems
        if problems:
            raise JobError(*problems)
        return found

    def _image(self, path: Path, subset: Subset) -> ImageFile:
        shown = f"{subset.shown}/{path.name}"
        settings = dict(subset.settings)
        image = ImageFile(path, self._digest(path, shown), shown, 0, subset.repeats, settings=settings)
        caption = caption_path(path, subset.caption_extension)
        if not os.path.lexists(caption):  # a link that leads nowhere is told of: a caption is meant
            return image
        settings.pop("class_tokens", None)
        return replace(image, caption=caption, caption_digest=self._digest(caption, f"{subset.shown}/{caption.name}"))

    def _digest(self, path: Path, shown: str) -> str:
        try:
            return self.state.digest(path)
        except OSError as error:
            raise JobError(f"{one_line(shown)}: {error.strerror}") from None
        except UnicodeEncodeError:
            raise JobError(f"{one_line(shown)}: {NOT_UTF8}") from None


def images_digest(images: Sequence[ImageFile], captions: bool) -> str:
    """What a key says of image folders. Without `captions` the pictures alone count, and each once."""
    if not captions:
        return digest_json(sorted(([digest] for digest in {image.digest for image in images}), key=repr))
    rows: list[Any] = [
        [image.digest, image.caption_digest, image.repeats, *([dict(image.settings)] if image.settings else [])]
        for image in images
    ]
    return digest_json(sorted(rows, key=repr))


def _check_lora(item: File) -> None:
    from lorabuild.header import read_header
    from lorabuild.lora.family import misfit

    header = read_header(item.path, item.shown)
    if said := misfit(header.tensors, header.metadata):
        raise JobError(said)


def named_subsets(subset: Subset) -> list[Subset]:
    """The folders `10_ember` in the folder of a subset as subsets of their own. Raises JobError if there are none."""
    found = _looked_into(subset, named_folders)
    if not found:
        said = f"{subset.shown}: no folders in it that are named as 10_ember is: repeats, then what the images show"
        raise InputMissing(said, "its images are")
    for folder, repeats, _ in found:
        if repeats > MOST_REPEATS:
            raise JobError(f"{subset.shown}/{folder.name}: {repeats} repeats, at most {MOST_REPEATS} are possible")
    return [
        Subset(
            folder,
            f"{subset.shown}/{folder.name}",
            repeats,
            subset.caption_extension,
            tuple(sorted({"class_tokens": tokens, **dict(subset.settings)}.items())) if tokens else subset.settings,
        )
        for folder, repeats, tokens in found
    ]


def _listed(subset: Subset) -> list[Path]:
    """The images of a folder. Raises JobError if there are none."""
    if found := _looked_into(subset, list_images):
        return found
    kinds = ", ".join(extension.removeprefix(".") for extension in EXTENSIONS)
    inside = ", ".join(f"{folder.name}/" for folder, _, _ in named_folders(subset.folder)[:3])
    advice = f" (dataset.train_data_dir takes such a folder, with {inside} in it)" if inside else ""
    said = f"{subset.shown}: no images ({kinds}) in this folder; folders inside it are not searched{advice}"
    raise InputMissing(said, "its images are")


def _looked_into(subset: Subset, look: Callable[[Path], list[Any]]) -> list[Any]:
    """What `look` finds in the folder of a subset. Raises JobError if it cannot be listed."""
    key = "train_data_dir or reg_data_dir of [dataset]" if subset.named else "image_dir of a dataset.subset"
    try:
        return look(subset.folder)
    except FileNotFoundError:
        raise InputMissing(f"{subset.shown}: no such folder ({key})", "its images are") from None
    except NotADirectoryError:
        raise JobError(f"{subset.shown}: not a folder ({key})") from None
    except OSError as error:
        raise JobError(f"{subset.shown}: {error.strerror}") from None


def components(version: int, params: Mapping[str, Any], inputs: Mapping[str, Resolved]) -> dict[str, Any]:
    """What a key is made of, in a form that `why` can compare and print; "told" is in no key and explains digests."""
    images = [image for one in inputs.values() for image in one.images]
    settings: dict[str, dict[str, Any]] = {}
    for image in images:
        if image.settings:
            settings.setdefault(image.shown.rpartition("/")[0], {}).update(image.settings)
    return {
        "version": version,
        "params": params,
        "inputs": {role: one.by_name for role, one in inputs.items()},
        "told": {
            "from": {role: list(one.told) for role, one in inputs.items() if one.told},
            "repeats": {image.shown.rpartition("/")[0]: image.repeats for image in images},
            "digests": {role: one.digest for role, one in inputs.items() if one.images},
            **({"settings": settings} if settings else {}),
        },
    }


def key_of(stage: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, Resolved]) -> str:
    """xxh3-128 of stage name, stage version, params and input digests."""
    return digest_json([stage, version, params, {role: one.digest for role, one in inputs.items()}])
