"""Encode the images of a data set into latents: only those that were not encoded before, and each by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from lorabuild.ahead import LARGE, ahead, cores
from lorabuild.data.buckets import PIXELS_PER_LATENT, Geometry
from lorabuild.data.images import (
    MASKED,
    decode,
    decode_alpha,
    latent_name,
    mask_name,
    resize_and_crop,
    to_chw,
    to_mask,
)
from lorabuild.errors import JobError
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
MASKING = 1  # raised by hand when equal alpha channels should give other masks
READ = ("flip_aug", "alpha_policy", "latents")  # of [dataset]; all else comes with geometry.json


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        folders = image_folders(repository, project)
        if folders and not project.settings["project"]["source"]:
            dataset = project.settings["dataset"]
            yield Job(
                name=f"latents:{name}",
                params={"dataset": {key: dataset[key] for key in READ if key in dataset}},
                inputs={
                    "geometry": Artifact(f"dataset:{name}", "geometry.json"),
                    "vae": Component(project.settings["project"]["base"], "vae"),
                    "images": Images(folders, captions=False),
                },
                outputs=["latents"],
            )


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write `latents`: `<digest>.<w>x<h>` [4, h/8, w/8] fp32 of each image, by `flip_aug` `<digest>.<w>x<h>.flip` too.

    Beside them the masks of pictures that have one, [h/8, w/8]. Each view of an image is a piece. Its bytes depend on
    nothing else that is encoded with it, and turning `flip_aug` on keeps the pieces that are there. While one image is
    encoded the next ones are read, in threads: no more than four are in memory. Raises JobError for latents that are not finite.
    """
    settings = job.params["dataset"]
    rows = json.loads(workspace.path("geometry").read_bytes())
    files = {image.digest: image for image in workspace.images["images"]}

    def read(number: int) -> np.ndarray:
        return to_chw(_pixels(workspace, rows[number], files, settings.get("alpha_policy", "white")))

    decoded: dict[int, Callable[[], np.ndarray]] = {}

    @lru_cache(maxsize=1)  # the flip comes next
    def pixels_of(number: int) -> np.ndarray:
        return decoded.pop(number, partial(read, number))()

    identity = partial(_identity, vae=workspace.digests["vae"], settings=settings)
    images = {row["digest"] for row in rows}
    done: set[str] = set()
    encoded: set[str] = set()

    def view(number: int, flip: bool) -> bytes:
        row = rows[number]

        def make() -> bytes:
            encoded.add(row["digest"])
            return _encode(workspace, row, pixels_of(number), flip, files, settings.get("latents", "mean"))

        progress(len(done), len(images), f"{len(encoded)} encoded")
        done.add(row["digest"])
        return workspace.piece(identity(row, flip), make)[0]

    views: dict[str, tuple[tuple[int, ...], Callable[[], bytes]]] = {}
    missing: dict[str, int] = {}  # the views that will be encoded -> row
    for number, row in enumerate(rows):
        for flip in (False, True) if row.get("flip", settings["flip_aug"]) else (False,):
            if (name := latent_name(row, flip)) not in views:
                views[name] = _shape(row), partial(view, number, flip)
                if not workspace.has_piece(identity(row, flip)):
                    missing[name] = number
        if MASKED in row:
            views.setdefault(mask_name(row), (_shape(row)[1:], partial(_mask, workspace, row, files)))
    # It asks for one after the other, in name order.
    with ThreadPoolExecutor(cores()) as pool:
        decoded |= _ahead(pool, read, dict.fromkeys(missing[name] for name in sorted(missing)))
        write_body(workspace.output("latents"), [(name, "F32", shape, make) for name, (shape, make) in views.items()])
    workspace.note(encoded=len(encoded), reused=len(images) - len(encoded))


def _ahead(
    pool: Executor, read: Callable[[int], np.ndarray], rows: Iterable[int]
) -> dict[int, Callable[[], np.ndarray]]:
    """What gives the pixels of each of the `rows`, once, if it is asked in their order."""
    rows = list(rows)
    return dict(zip(rows, ahead(pool, [partial(read, row) for row in rows], [LARGE] * len(rows)), strict=True))


def _identity(row: Row, flip: bool, vae: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that shapes the latents of one view of an image."""
    drawn = {"latents": settings["latents"]} if settings.get("latents", "mean") != "mean" else {}
    return {"piece": "latents", "version": [DECODING, ENCODING], "vae": vae, "flip": flip, **_place(row), **drawn}


def _place(row: Row) -> dict[str, Any]:
    """Which pixels they are, and how they are cut."""
    return {key: row[key] for key in ("digest", "resized", "bucket", "crop", "interpolation") if key in row}


def _shape(row: Row) -> tuple[int, int, int]:
    width, height = row["bucket"]
    return CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def _pixels(workspace: Workspace, row: Row, files: Mapping[str, ImageFile], alpha_policy: str) -> np.ndarray:
    """uint8 [h, w, 3] of the picture as training sees it, [h, w] of its alpha channel for the policy "mask"."""
    image = _file(row, files)
    data = workspace.read(image.path, image.digest)
    picture = decode_alpha(data, image.shown) if alpha_policy == MASKED else decode(data, image.shown, alpha_policy)
    place = Geometry(*(tuple(row[key]) for key in ("resized", "bucket", "crop")))
    return resize_and_crop(picture, place, row.get("interpolation"))


def _mask(workspace: Workspace, row: Row, files: Mapping[str, ImageFile]) -> bytes:
    """The raw fp32 bytes of an image's mask."""
    identity = {"piece": "mask", "version": [DECODING, MASKING], **_place(row), "digest": row[MASKED]}
    return workspace.piece(identity, lambda: to_mask(_pixels(workspace, row, files, MASKED)).tobytes())[0]


def _encode(
    workspace: Workspace, row: Row, pixels: np.ndarray, flip: bool, files: Mapping[str, ImageFile], kind: str
) -> bytes:
    """The raw fp32 bytes of one view's latents. The flipped view is that of the flipped pixels, not flipped latents.

    Of `kind` "mean", or "sample": a draw from a stream of the image's own.
    """
    import numpy as np
    import torch

    from lorabuild.nn.noise import generator
    from lorabuild.nn.vae import encode, load_vae
    from lorabuild.nn.warm import aside

    aside(("vae",))
    vae = load_vae(workspace.path("vae"), workspace.digests["vae"])
    seen = np.ascontiguousarray(pixels[:, :, ::-1]) if flip else pixels
    chance = generator(0, "latents", row["digest"], int(flip)) if kind == "sample" else None
    latents = encode(vae, torch.from_numpy(seen)[None], chance)[0].numpy()
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
