"""Read a data set: every image and caption, and what each image is resized and cropped to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.buckets import geometry, settings_problem
from lorabuild.captions import read_caption
from lorabuild.errors import JobError, Problem
from lorabuild.images import EXTENSIONS, decode, pixels_digest
from lorabuild.stage import Images, Job, Stage, Subset
from lorabuild.workspace import ImageFile, Progress, Workspace

if TYPE_CHECKING:
    from lorabuild.manifest import Project, Repository

DECODING = 1  # raised by hand when equal files should give other pixels


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        folders = subsets(repository, project)
        if not folders:
            continue
        settings = {key: value for key, value in project.settings["dataset"].items() if key != "subset"}
        yield Job(
            name=f"dataset:{name}",
            params={"dataset": settings},
            inputs={"images": Images(folders, captions=True)},
            outputs=["dataset.json", "geometry.json"],
            options={"folders": [folder.shown for folder in folders]},
        )


def subsets(repository: Repository, project: Project) -> tuple[Subset, ...]:
    """The image folders of a project; none if it has no `[dataset]`."""
    dataset = project.settings.get("dataset") or {}
    return tuple(
        Subset(
            folder := project.folder / subset["image_dir"],
            _shown(folder, repository.root),
            subset["num_repeats"],
            dataset["caption_extension"],
        )
        for subset in dataset.get("subset", [])
    )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `dataset.json` (all that training reads) and `geometry.json` (all that latents need), without file names.

    Raises one JobError for all bad files of the data set at once.
    """
    settings, images = job.params["dataset"], workspace.images["images"]
    problems = _problems_of_the_whole(job, images)
    rows: list[dict[str, Any]] = []
    places: list[dict[str, Any]] = []
    for done, image in enumerate(images):
        progress(done, len(images), image.shown)
        try:
            place = _place(workspace, image, settings)
            places.append({"file": image.digest, **place})
            rows.append({**place, "repeats": image.repeats})
        except JobError as error:
            problems += error.problems
        try:
            caption = _caption(workspace, image)
        except JobError as error:
            problems += error.problems
        else:
            if rows:
                rows[-1]["caption"] = caption
    if problems:
        raise JobError(*problems)
    rows.sort(key=lambda row: (row["digest"], row["caption"], row["repeats"]))
    text = f'{{"images": [\n{_lines(rows)}\n],\n"settings": {_line(settings)}}}\n'
    workspace.output("dataset.json").write_bytes(text.encode())
    workspace.output("geometry.json").write_bytes(f"[\n{_lines(_unique(places))}\n]\n".encode())


def _problems_of_the_whole(job: Job, images: list[ImageFile]) -> list[Problem]:
    """Settings that contradict each other, and folders without images."""
    settings_wrong = settings_problem(job.params["dataset"])
    found = [f"dataset.{settings_wrong}"] if settings_wrong else []
    seen = {image.subset for image in images}
    kinds = ", ".join(extension.removeprefix(".") for extension in EXTENSIONS)
    for number, shown in enumerate(job.options["folders"]):
        if number not in seen:
            found.append(f"{shown}: no images ({kinds}) in this folder; folders in it are not searched")
    return [Problem("", 0, text) for text in found]
