"""Count what the buckets of a data set come to: images, batches, and how full the batches are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabuild.checks.images import Placed
from lorabuild.data.buckets import Size
from lorabuild.findings import Finding, found
from lorabuild.training.order import matched_repeats
from lorabuild.training.validation import held_back_of


@dataclass(frozen=True)
class Bucket:
    """A bucket in numbers. `tail`: the samples of its last batch, if that is not full; 0 if it is."""

    size: Size
    images: int
    samples: int  # images with their repeats
    batches: int
    tail: int
    crop_loss: float  # the largest of its images
    scale: float  # likewise


def bucket_rows(placed: Sequence[Placed], recipe: Mapping[str, Any]) -> list[Bucket]:
    """The buckets that have images to train on, by size."""
    batch, members = recipe["train_batch_size"], dict[Size, list[tuple[Placed, int]]]()
    unseen = held_back_of({one.digest for one in placed if not one.entry.settings.get("is_reg")}, recipe)
    for one, repeats in with_repeats(placed):
        if one.digest in unseen and not one.entry.settings.get("is_reg"):
            continue  # validation_split
        members.setdefault(one.place.bucket, []).append((one, repeats))
    rows = []
    for size, both in sorted(members.items()):
        images, samples = [one for one, _ in both], sum(repeats for _, repeats in both)
        loss, scale = max(one.crop_loss for one in images), max(one.scale for one in images)
        rows.append(Bucket(size, len(images), samples, -(-samples // batch), samples % batch, loss, scale))
    return rows


def with_repeats(placed: Sequence[Placed]) -> list[tuple[Placed, int]]:
    """Each image and how often an epoch shows it; regularisation images are as many as the others, as they are trained."""
    trained = [(one, one.entry.subset.repeats) for one in placed if not one.entry.settings.get("is_reg")]
    others = sorted((one for one in placed if one.entry.settings.get("is_reg")), key=lambda one: one.digest)
    repeats = matched_repeats([one.entry.subset.repeats for one in others], sum(count for _, count in trained))
    return trained + [(one, count) for one, count in zip(others, repeats, strict=True) if count]


def share_findings(recipe: Mapping[str, Any], file: str, line: int) -> Iterator[Finding]:
    """Have all `processes` as much to do? `file` and `line`: where they stand.

    An update is dealt in micro-batches, which are cut only if there are fewer than processes (nn/parallel.py).
    """
    processes, accumulation = recipe.get("processes", 1), recipe["gradient_accumulation_steps"]
    parts = min(-(-processes // accumulation), recipe["train_batch_size"]) if accumulation < processes else 1
    units = accumulation * parts
    if units % processes == 0:
        return
    what = f"{accumulation} micro-batch{'es' * (accumulation != 1)}"
    what += f", cut into {units} parts," if parts > 1 else ""
    most, idle = -(-units // processes), processes - units
    waits = f"{idle} idle" if idle > 0 else f"some have {most}, others {units // processes} and wait"
    yield found("LB062", file, f"recipe.processes: an update's {what} ÷ {processes} processes: {waits}", line)


def batch_findings(buckets: Sequence[Bucket], recipe: Mapping[str, Any], manifest: str, line: int) -> Iterator[Finding]:
    """`manifest` and `line`: where train_batch_size stands, or the table that it has its default in."""
    batch, accumulation = recipe["train_batch_size"], recipe["gradient_accumulation_steps"]
    short = [one for one in buckets if one.samples < batch]
    samples = sum(one.samples for one in buckets)
    if short:
        sizes = ", ".join(f"{one.size[0]}x{one.size[1]} ({one.samples})" for one in short[:8])
        more = ", …" if len(short) > 8 else ""
        said = f"{len(short)} of {len(buckets)} buckets do not fill one batch of {batch}: {sizes}{more}"
        yield found("LB060", manifest, f"recipe.train_batch_size: {said}", line)
    if buckets and batch * accumulation >= samples and batch * accumulation > 1:
        said = f"batch {batch} x accumulation {accumulation} is an epoch or more: {samples} samples"
        yield found("LB061", manifest, f"recipe.train_batch_size: {said}", line)
