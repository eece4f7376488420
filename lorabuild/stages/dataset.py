"""Read a data set: every image and caption, and what each image is resized and cropped to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.buckets import geometry, settings_problem
from lorabuild.captions import read_caption
from lorabuild.errors import JobError, Problem
from lorabuild.hashing import canonical_json
from lorabuild.images import decode, pixels_digest
from lorabuild.stage import Images, Job, Stage, Subset
from lorabuild.workspace import ImageFile, Progress, Workspace

if TYPE_CHECKING:
    from lorabuild.manifest import Project, Repository

DECODING = 1  # raised by hand when equal files should give other pixels


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        if folders := image_folders(repository, project):
            settings = {key: value for key, value in project.settings["dataset"].items() if key != "subset"}
            yield Job(
                name=f"dataset:{name}",
                params={"dataset": settings},
                inputs={"images": Images(folders, captions=True)},
                outputs=["dataset.json", "geometry.json"],
            )


def image_folders(repository: Repository, project: Project) -> tuple[Subset, ...]:
    """The image folders of a project; none if it has no `[dataset]`."""
    dataset = project.settings["dataset"] or {"subset": []}
    folders = []
    for subset in dataset["subset"]:
        folder = project.folder / subset["image_dir"]
        extension = subset.get("caption_extension") or dataset["caption_extension"]
        folders.append(Subset(folder, _shown(folder, repository.root), subset["num_repeats"], extension))
    return tuple(folders)


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `dataset.json` (all that training reads) and `geometry.json` (all that latents need), without file names.

    Raises one JobError for everything that is wrong with the data set.
    """
    settings, images = job.params["dataset"], workspace.images["images"]
    if problem := settings_problem(settings):
        raise JobError(f"dataset.{problem}")
    problems: list[Problem] = []
    rows: list[dict[str, Any]] = []
    files: dict[str, dict[str, Any]] = {}
    for done, image in enumerate(images):
        progress(done, len(images), image.shown)
        place = _tried(problems, lambda image=image: _place(workspace, image, settings))
        caption = _tried(problems, lambda image=image: _caption(workspace, image))
        if not problems:
            rows.append({**place, "caption": caption, "repeats": image.repeats})
            files[image.digest] = {"file": image.digest, **place}
    if problems:
        raise JobError(*problems)
    if silent := [image.shown for image in images if image.caption is None]:
        workspace.warn(
            f"{len(silent)} of {len(images)} images have no caption file: {silent[0]}" + ", …" * (len(silent) > 1)
        )
    rows.sort(key=lambda row: (row["digest"], row["caption"], row["repeats"]))
    dataset = b'{"settings":%b,"images":%b}\n' % (canonical_json(settings), _list(rows))
    workspace.output("dataset.json").write_bytes(dataset)
    workspace.output("geometry.json").write_bytes(_list([place for _, place in sorted(files.items())]) + b"\n")


def _tried(problems: list[Problem], work: Callable[[], Any]) -> Any:
    """What `work` gives; if it cannot, its problems join the others, so that all are told at once."""
    try:
        return work()
    except JobError as error:
        problems += error.problems
        return None


def _place(workspace: Workspace, image: ImageFile, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Pixels' digest and size of an image, and what it is resized and cropped to."""

    def look() -> bytes:
        picture = decode(workspace.read(image.path, image.digest), image.shown)
        return canonical_json({"digest": pixels_digest(picture), "size": picture.size})

    data, _ = workspace.piece({"piece": "decoded", "version": DECODING, "file": image.digest}, look)
    facts = json.loads(data)
    try:
        place = geometry(tuple(facts["size"]), settings)
    except ValueError as error:
        raise JobError(f"{image.shown}: {error}") from None
    return {**facts, "resized": list(place.resized), "bucket": list(place.bucket), "crop": list(place.crop)}


def _caption(workspace: Workspace, image: ImageFile) -> str:
    """The caption of an image; empty if there is no file."""
    if image.caption is None:
        return ""
    shown = str(Path(image.shown).with_name(image.caption.name))
    return read_caption(workspace.read(image.caption, image.caption_digest), shown)


def _list(rows: Sequence[Any]) -> bytes:
    """A JSON list, one row a line: `git diff` shows which image changed."""
    return b"[\n" + b",\n".join(map(canonical_json, rows)) + b"\n]"


def _shown(folder: Path, root: Path) -> str:
    """What messages call a folder: its path in the repository, or the whole path of one elsewhere."""
    whole = Path(os.path.normpath(folder))
    return (whole.relative_to(root) if whole.is_relative_to(root) else whole).as_posix()


STAGE = Stage("dataset", 1, jobs, run)
