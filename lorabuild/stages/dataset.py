"""Read a data set: every image and caption, and what each image is resized and cropped to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.data.buckets import geometry, settings_problem
from lorabuild.data.captions import DRAWN, read_caption
from lorabuild.data.images import MASKED, decode, decode_alpha, pixels_digest
from lorabuild.data.resampling import own_interpolation
from lorabuild.errors import JobError, Problem
from lorabuild.hashing import canonical_json
from lorabuild.stage import Images, Job, Stage, Subset
from lorabuild.training.order import matched_repeats
from lorabuild.workspace import ImageFile, Progress, Workspace

if TYPE_CHECKING:
    from lorabuild.manifest import Project, Repository

DECODING = 1  # raised by hand when equal files should give other pixels

# What a folder may have otherwise than its data set, with the data set's defaults; and what is said of folders alone.
OWN: dict[str, Any] = {**DRAWN, "flip_aug": False, "alpha_mask": False, "resize_interpolation": None}
FOLDERS_OWN = {"is_reg": False, "class_tokens": ""}
# What shows in the rows and the latents alone: where it changes neither, training starts from the same bytes.
UNREAD = ("alpha_mask", "alpha_policy", "latents", "resize_interpolation")
PLACES = ("subset", "train_data_dir", "reg_data_dir")  # where the images are: their content counts


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        if folders := image_folders(repository, project):
            settings = {key: value for key, value in project.settings["dataset"].items() if key not in PLACES}
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
        own = tuple(sorted(_own(subset, dataset).items()))
        folders.append(Subset(folder, _shown(folder, repository.root), subset["num_repeats"], extension, own))
    for key, own in (("train_data_dir", ()), ("reg_data_dir", (("is_reg", True),))):
        if key in dataset:
            folder = project.folder / dataset[key]
            shown = _shown(folder, repository.root)
            folders.append(Subset(folder, shown, 1, dataset["caption_extension"], own, named=True))
    return tuple(folders)


def _own(subset: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a subset that are not its data set's."""
    usual = {**OWN, **dataset, **FOLDERS_OWN}
    known = OWN.keys() | FOLDERS_OWN.keys()
    return {key: value for key, value in subset.items() if key in known and value != usual[key]}


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `dataset.json` (all that training reads) and `geometry.json` (all that latents need), without file names.

    Raises one JobError for everything that is wrong with the data set.
    """
    settings, images = job.params["dataset"], workspace.images["images"]
    if problem := settings_problem(settings):
        raise JobError(f"dataset.{problem}")
    problems: list[Problem] = []
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for done, image in enumerate(images):
        progress(done, len(images), image.shown)
        own = {**settings, **image.settings}
        place = _tried(problems, lambda image=image, own=own: _place(workspace, image, own))
        caption = _tried(problems, lambda image=image, own=own: _caption(workspace, image, own))
        if not problems:
            rows.append((_row(image, place, caption), _geometry_row(image, place)))
    if problems:
        raise JobError(*problems)
    _warn_of_silent(workspace, images)
    rows.sort(key=lambda both: (*(both[0][key] for key in ("digest", "caption", "repeats")), canonical_json(both[0])))
    rows = _matched(rows, workspace)
    places = {canonical_json(place): place for _, place in rows}
    read = {key: value for key, value in settings.items() if key not in UNREAD}
    dataset = b'{"settings":%b,"images":%b}\n' % (canonical_json(read), _list([row for row, _ in rows]))
    workspace.output("dataset.json").write_bytes(dataset)
    geometry = sorted(places, key=lambda text: (places[text]["file"], text))
    workspace.output("geometry.json").write_bytes(_list([places[text] for text in geometry]) + b"\n")


def _row(image: ImageFile, place: Mapping[str, Any], caption: str) -> dict[str, Any]:
    """What training reads of an image."""
    row = {**place, "caption": caption, "repeats": image.repeats}
    if own := {key: value for key, value in image.settings.items() if key in DRAWN or key == "flip_aug"}:
        row["settings"] = own
    if image.settings.get("is_reg"):
        row["is_reg"] = True
    return row


def _geometry_row(image: ImageFile, place: Mapping[str, Any]) -> dict[str, Any]:
    """What latents need of it. `flip` only where it is not the data set's."""
    row = {"file": image.digest, **place}
    if "flip_aug" in image.settings:
        row["flip"] = image.settings["flip_aug"]
    return row


def _matched(rows: list[tuple[dict[str, Any], dict[str, Any]]], workspace: Workspace) -> list[tuple[dict, dict]]:
    """The rows, those of regularisation images repeated so that they are as many as the others."""
    trained = [both for both in rows if "is_reg" not in both[0]]
    others = [both for both in rows if "is_reg" in both[0]]
    if not trained:
        raise JobError("dataset: all images are for regularisation (is_reg): there is nothing to learn from")
    repeats = matched_repeats([row["repeats"] for row, _ in others], sum(row["repeats"] for row, _ in trained))
    if idle := repeats.count(0):
        workspace.warn(f"{idle} of {len(others)} regularisation images are not used: there are fewer to train on")
    shown = [({**row, "repeats": count}, place) for (row, place), count in zip(others, repeats, strict=True) if count]
    return sorted(trained + shown, key=lambda both: both[0]["digest"]) if others else trained


def _warn_of_silent(workspace: Workspace, images: Sequence[ImageFile]) -> None:
    if silent := [image for image in images if image.caption is None]:
        named = all("class_tokens" in image.settings for image in silent)
        workspace.warn(
            f"{len(silent)} of {len(images)} images have no caption file: {silent[0].shown}"
            + ", …" * (len(silent) > 1)
            + " (class_tokens are their caption)" * named
        )


def _tried(problems: list[Problem], work: Callable[[], Any]) -> Any:
    """What `work` gives; if it cannot, its problems join the others, so that all are told at once."""
    try:
        return work()
    except JobError as error:
        problems += error.problems
        return None


def _place(workspace: Workspace, image: ImageFile, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Pixels' digest and size of an image, what it is resized and cropped to, and how where that is not the usual way.

    With alpha_mask, `mask` is the digest of its alpha channel; an opaque image has none.
    """
    policy = settings.get("alpha_policy", "white")

    def look() -> bytes:
        picture = decode(workspace.read(image.path, image.digest), image.shown, policy)
        return canonical_json({"digest": pixels_digest(picture), "size": picture.size})

    identity = {"piece": "decoded", "version": DECODING, "file": image.digest}
    data, _ = workspace.piece(identity if policy == "white" else {**identity, "alpha_policy": policy}, look)
    facts = json.loads(data)
    size = tuple(facts["size"])
    try:
        place = geometry(size, settings)
    except ValueError as error:
        raise JobError(f"{image.shown}: {error}") from None
    row = {**facts, "resized": list(place.resized), "bucket": list(place.bucket), "crop": list(place.crop)}
    if interpolation := own_interpolation(size, place.resized, settings.get("resize_interpolation")):
        row["interpolation"] = interpolation
    if settings.get("alpha_mask") and (mask := _mask(workspace, image)):
        row[MASKED] = mask
    return row


def _mask(workspace: Workspace, image: ImageFile) -> str | None:
    """The digest of an image's alpha channel; None if it is opaque."""

    def look() -> bytes:
        alpha = decode_alpha(workspace.read(image.path, image.digest), image.shown)
        return canonical_json(pixels_digest(alpha) if alpha else None)

    data, _ = workspace.piece({"piece": "alpha", "version": DECODING, "file": image.digest}, look)
    return json.loads(data)


def _caption(workspace: Workspace, image: ImageFile, settings: Mapping[str, Any]) -> str:
    """The caption of an image; without a file the class tokens of its folder, or nothing."""
    if image.caption is None:
        return settings.get("class_tokens", "")
    shown = str(Path(image.shown).with_name(image.caption.name))
    data = workspace.read(image.caption, image.caption_digest)
    return read_caption(data, shown, settings.get("enable_wildcard", False))


def _list(rows: Sequence[Any]) -> bytes:
    """A JSON list, one row a line: `git diff` shows which image changed."""
    return b"[\n" + b",\n".join(map(canonical_json, rows)) + b"\n]"


def _shown(folder: Path, root: Path) -> str:
    """What messages call a folder: its path in the repository, or the whole path of one elsewhere."""
    whole = Path(os.path.normpath(folder))
    return (whole.relative_to(root) if whole.is_relative_to(root) else whole).as_posix()


STAGE = Stage("dataset", 1, jobs, run)
