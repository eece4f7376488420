"""Judge the pictures of a project: which cannot be used, how each fits its bucket, which are there twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lorabuild.checks.files import Entry
from lorabuild.checks.pictures import Facts
from lorabuild.data.buckets import Geometry, geometry
from lorabuild.findings import Finding, found, one_line

CROP_LOSS = (
    0.15  # at 1024 in steps of 64 px it is 7 % at most for what is no longer than the buckets, at tiny sizes 14 %
)
ENLARGED = 1.5
NEAR_BITS = 4  # of 64

ENDINGS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
    "JXL": (".jxl",),
}


@dataclass(frozen=True)
class Placed:
    """An image that can be used, and what becomes of it."""

    entry: Entry
    digest: str  # of its pixels
    size: tuple[int, int]
    place: Geometry

    @property
    def crop_loss(self) -> float:
        """The part of the resized image that lies outside its bucket, 0 to 1."""
        return 1 - prod(self.place.bucket) / prod(self.place.resized)

    @property
    def scale(self) -> float:
        """How much it is enlarged; below 1 it is shrunk."""
        return max(new / old for new, old in zip(self.place.resized, self.size, strict=True))


def place(entry: Entry, facts: Facts, settings: Mapping[str, Any]) -> tuple[Placed | None, list[Finding]]:
    """The image in its bucket, and what is to be said of it. None if it cannot be used."""
    if "fault" in facts:
        return None, [found("LB031", entry.shown, facts["fault"])]
    findings = list(stored(entry, facts))
    try:
        placed = Placed(entry, facts["digest"], tuple(facts["size"]), geometry(tuple(facts["size"]), settings))
    except ValueError as error:
        return None, [*findings, found("LB032", entry.shown, str(error))]
    return placed, [*findings, *fit(placed)]


def stored(entry: Entry, facts: Facts) -> Iterator[Finding]:
    """What is odd in the file that a picture is stored in."""
    endings = ENDINGS.get(facts["format"])
    if endings and entry.path.suffix.lower() not in endings:
        yield found("LB037", entry.shown, f"is a {facts['format']} file: its name should end in {endings[0]}")
    if facts["frames"] > 1:
        yield found("LB038", entry.shown, f"animated: the first of {facts['frames']} frames is seen, no other")
    if facts["damage"]:
        yield found("LB041", entry.shown, f"the checksum of its {facts['damage']} chunk is wrong")
    if facts["blank"]:
        yield found("LB042", entry.shown, "all its pixels are of one colour")
    if facts["mode"] == "CMYK":
        yield found("LB039", entry.shown, "CMYK: converted to RGB without a colour profile")
    if facts["mode"].startswith("I"):
        yield found("LB039", entry.shown, "16-bit grey: cut to 8 bits")


def fit(placed: Placed) -> Iterator[Finding]:
    """How an image and its bucket go together."""
    shown, bucket = placed.entry.shown, _x(placed.place.bucket)
    if placed.crop_loss > CROP_LOSS:
        said = f"{_x(placed.size)} loses {placed.crop_loss:.0%} of its area to the crop into bucket {bucket}"
        yield found("LB033", shown, said)
    if placed.scale > ENLARGED:
        yield found("LB034", shown, f"{_x(placed.size)} is enlarged {placed.scale:.2f} times for bucket {bucket}")


def twins(files: Mapping[Path, tuple[str, Facts]]) -> list[Finding]:
    """Files that hold the same picture, and those that nearly do, each told once, of the first that it is like.

    `files`: path -> (what messages call it, facts). A picture without any edge says nothing of others.
    """
    found_twins: list[Finding] = []
    first: dict[str, str] = {}  # digest of pixels -> the file that has them first
    seen: list[tuple[str, int]] = []
    for shown, facts in files.values():
        if "fault" in facts:
            continue
        if (same := first.setdefault(facts["digest"], shown)) != shown:
            found_twins.append(found("LB035", shown, f"the same pixels as {one_line(same)}"))
        else:
            seen.append((shown, int(facts["dhash"], 16)))
    edged = [one for one in seen if one[1]]
    for number, other, bits in near([hash for _, hash in edged]):
        said = f"nearly the same as {one_line(edged[other][0])}: their dHash differs in {bits} of 64 bits"
        found_twins.append(found("LB036", edged[number][0], said))
    return found_twins


def near(hashes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(number, number of the first before it that is near, bits in which they differ).

    Two that differ in n bits are equal in one of n + 1 pieces: those that share a piece are sorted next to each other, and
    compared. So not each is compared with each; memory is that of a few lists. A piece takes its bits from all over the
    picture: a white border, which many have, alone makes none equal.
    """
    import numpy as np

    values, first, which = np.unique(np.array(hashes, np.uint64), return_index=True, return_inverse=True)
    nearest = first.copy()  # of each value, the first picture that is near it, of those that have it, too
    for piece in range(NEAR_BITS + 1):
        mask = np.uint64(sum(1 << bit for bit in range(piece, 64, NEAR_BITS + 1)))
        order = np.argsort(values & mask, kind="stable")
        shared, left, apart = values[order] & mask, np.arange(len(order)), 0
        while len(left):
            apart += 1
            left = left[: np.searchsorted(left, len(order) - apart)]
            left = left[shared[left] == shared[left + apart]]  # who shares it at this distance did at a smaller one
            one, other = order[left], order[left + apart]
            close = np.bitwise_count(values[one] ^ values[other]) <= NEAR_BITS
            np.minimum.at(nearest, one[close], first[other[close]])
            np.minimum.at(nearest, other[close], first[one[close]])
    for number, other in enumerate(nearest[which].tolist()):
        if other < number:
            yield number, other, (hashes[number] ^ hashes[other]).bit_count()


def _x(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
