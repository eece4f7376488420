"""The pictures that `doit samples` has drawn of a project, as the report's sections show them; and their thumbnails."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError
from lorabuild.hashing import digest_file
from lorabuild.report.files import ProjectFiles

SIDE = 384  # pixels of a thumbnail's longer side: what a column of a wide page has, on a screen of usual density
QUALITY = 80  # of its WebP
BUDGET = 3_000_000  # bytes of thumbnails that a section has in its page; the pictures beyond are files beside it
FOLDER = "samples"  # of the pictures beside a page
GONE, ANOTHER = (
    "the file is gone: doit samples:{name} restores it",
    "the file is not the one that samples.json tells of",
)


@dataclass(frozen=True)
class Picture:
    """One picture that samples.json tells of. `path` is None, and `fault` says why, where it cannot be shown."""

    number: int  # of the prompt, from 0
    role: str  # base, step/10, trained, resized, chopped, mini/chopped; of a part: without/OUT01, only/OUT01
    told: Mapping[str, Any]
    path: Path | None
    fault: str = ""

    @property
    def name(self) -> str:
        return Path(self.told["file"]).name

    @property
    def alt(self) -> str:
        return f"{title(self.role)}: {self.told['prompt']}"


def read_pictures(files: ProjectFiles) -> list[Picture] | None:
    """All pictures of a project; None where none were drawn. Raises JobError for a samples.json that is none."""
    path = files.path("samples")
    if path is None:
        return None
    try:
        return list(_read(path, files.path("pictures") or path.parent, files.project))
    except (ValueError, KeyError, TypeError):
        raise JobError(f"{path.name}: not what doit samples:{files.project} writes; build it again") from None


def _read(path: Path, folder: Path, project: str) -> Iterator[Picture]:
    for told in json.loads(path.read_bytes())["pictures"]:
        name = Path(told["file"]).name  # whatever stands there, nothing outside the folder is shown
        place, fault = folder / FOLDER / name, ""
        if not place.is_file():
            fault = GONE.format(name=project)
        elif "picture" in told and _digest(place, *_stamp(place)) != told["picture"]:
            fault = ANOTHER
        role = f"{told['shown']}/{told['block']}" if "block" in told else told["weights"]
        yield Picture(int(name.partition("-")[0]), role, told, None if fault else place, fault)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=16384)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """A picture is read once, however many sections ask: of a hundred snapshots there are gigabytes."""
    return digest_file(path)


def prompts(pictures: Sequence[Picture]) -> Iterator[tuple[Mapping[str, Any], dict[str, Picture]]]:
    """For each prompt, in the order of its file: what was asked for, and its pictures by role."""
    rows: dict[int, dict[str, Picture]] = {}
    for picture in pictures:
        rows.setdefault(picture.number, {})[picture.role] = picture
    for _, row in sorted(rows.items()):
        yield next(iter(row.values())).told, row


def title(role: str) -> str:
    """A column's title: "trained", "step 10", "@mini chopped", "without OUT01"."""
    family, _, member = role.rpartition("/")
    if family in ("", "step", "without", "only"):
        return f"{family} {member}".strip()
    return f"@{family} {member}"


def settings_line(told: Mapping[str, Any]) -> str:
    """`832 × 1216, seed 7, 30 steps, euler_a, guidance 7`."""
    return (
        f"{told['width']} × {told['height']}, seed {told['seed']}, {told['sample_steps']} steps, {told['sampler']}, "
        f"guidance {told['scale']:g}"
    )


class Thumbnails:
    """Makes what the page shows of each picture, and knows when a section has had enough of them."""

    def __init__(self, project: str, budget: int = BUDGET):
        self.project, self.left = project, budget
        self.linked = 0  # pictures that are shown from their files

    def cell(self, picture: Picture) -> dict[str, Any]:
        """A picture as the templates want it: `full`, its file beside the page, and `shown`, which is a data URI or the
        same file, with the size that it is shown in."""
        found: dict[str, Any] = {
            "role": picture.role,
            "title": title(picture.role),
            "alt": picture.alt,
            "difference": picture.told.get("difference", {}),
            "fault": picture.fault,
        }
        if picture.path is None:
            return found
        full = f"{self.project}/{FOLDER}/{picture.name}"
        width, height = picture.told["width"], picture.told["height"]
        shown = full
        if self.left > 0:
            shown = thumbnail(picture.path, picture.path.stat().st_mtime_ns)
            self.left -= len(shown)
        else:
            self.linked += 1
        return found | {"full": full, "shown": shown, "width": width, "height": height}


@lru_cache(maxsize=512)
def thumbnail(path: Path, mtime_ns: int) -> str:
    """A data URI of the picture, none of its sides longer than SIDE."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + b64encode(file.getvalue()).decode()
