"""Encode the images of a data set into latents: one at a time, and only those that were not encoded before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from lorabuild.buckets import PIXELS_PER_LATENT, Geometry
from lorabuild.errors import JobError
from lorabuild.images import decode, latent_name, resize_and_crop, to_chw
from lorabuild.stage import Artifact, Component, Images, Job, Stage
from lorabuild.stages.dataset import DECODING, image_folders
from lorabuild.workspace import ImageFile, Progress, Workspace
from lorabuild.writing import write_body

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.manifest import Repository

Row = Mapping[str, Any]  # a row of geometry.json

ENCODING = 1  # raised by hand when equal pixels should give other latents
CHANNELS = 4  # of SDXL's latents


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        folders = image_folders(repository, project)
        if folders and not project.settings["project"]["source"]:
            yield Job(
                name=f"latents:{name}",
                params={"dataset": {"flip_aug": project.settings["dataset"]["flip_aug"]}},
                inputs={
                    "geometry": Artifact(f"dataset:{name}", "geometry.json"),
                    "vae": Component(project.settings["project"]["base"], "vae"),
                    "images": Images(folders, captions=False),
                },
                outputs=["latents"],
            )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `latents`: `<digest>.<w>x<h>` [4, h/8, w/8] fp32 of each image, by `flip_aug` `<digest>.<w>x<h>.flip` too.

    Each view of an image is a piece. Its bytes depend on nothing else that is encoded with it, and turning `flip_aug`
    on keeps the pieces that are there. One image at a time is in memory. Raises JobError for latents that are not
    finite.
    """
    rows: dict[str, Row] = {row["digest"]: row for row in json.loads(workspace.path("geometry").read_bytes())}
    files = {image.digest: image for image in workspace.images["images"]}
    pixels_of = lru_cache(maxsize=1)(lambda digest: _pixels(workspace, rows[digest], files))  # the flip comes next
    flips = (False, True) if job.params["dataset"]["flip_aug"] else (False,)
    done: set[str] = set()
    encoded: set[str] = set()

    def view(digest: str, flip: bool) -> bytes:
        def make() -> bytes:
            encoded.add(digest)
            return _encode(workspace, rows[digest], pixels_of(digest), flip, files)

        progress(len(done), len(rows), f"{len(encoded)} encoded")
        done.add(digest)
        return workspace.piece(_identity(rows[digest], flip, workspace.digests["vae"]), make)[0]

    views = [
        (latent_name(row, flip), "F32", _shape(row), partial(view, digest, flip))
        for digest, row in rows.items()
        for flip in flips
    ]
    write_body(workspace.output("latents"), views)  # asks for one after the other, in name order
    workspace.note(encoded=len(encoded), reused=len(rows) - len(encoded))


def _identity(row: Row, flip: bool, vae: str) -> dict[str, Any]:
    """All that shapes the latents of one view of an image."""
    place = {key: row[key] for key in ("digest", "resized", "bucket", "crop")}
    return {"piece": "latents", "version": [DECODING, ENCODING], "vae": vae, "flip": flip, **place}


def _shape(row: Row) -> tuple[int, int, int]:
    width, height = row["bucket"]
    return CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def _pixels(workspace: Workspace, row: Row, files: Mapping[str, ImageFile]) -> np.ndarray:
    """float32 [3, h, w] in -1..1, as training sees the image."""
    image = _file(row, files)
    picture = decode(workspace.read(image.path, image.digest), image.shown)
    place = Geometry(*(tuple(row[key]) for key in ("resized", "bucket", "crop")))
    return to_chw(resize_and_crop(picture, place))


def _encode(workspace: Workspace, row: Row, pixels: np.ndarray, flip: bool, files: Mapping[str, ImageFile]) -> bytes:
    """The raw fp32 bytes of one view's latents. The flipped view is that of the flipped pixels, not flipped latents."""
    import numpy as np
    import torch

    from lorabuild.nn.vae import encode, load_vae

    vae = load_vae(workspace.path("vae"), workspace.digests["vae"])
    seen = np.ascontiguousarray(pixels[:, :, ::-1]) if flip else pixels
    latents = encode(vae, torch.from_numpy(seen)[None])[0].numpy()
    if latents.shape != _shape(row):
        raise JobError(f"the VAE makes latents of shape {latents.shape}, not {_shape(row)}: it is not one of SDXL")
    if not np.isfinite(latents).all():
        raise JobError(f"{_file(row, files).shown}: the VAE makes latents of it that are not finite")
    return latents.tobytes()


def _file(row: Row, files: Mapping[str, ImageFile]) -> ImageFile:
    if row["file"] not in files:
        raise JobError("an image was changed or removed while its data set was built: build again")
    return files[row["file"]]


STAGE = Stage("latents", 1, jobs, run, slot="gpu")
