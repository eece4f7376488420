"""Estimate what a job will take, by what it or one like it took before: seconds, bytes; and count a training's updates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

from lorabuild.engine import Engine
from lorabuild.forecast.outlook import Outlook
from lorabuild.publish import NAMES
from lorabuild.reasons import changes
from lorabuild.stage import Job
from lorabuild.store import Output, Record
from lorabuild.training.order import batches_per_epoch, matched_repeats
from lorabuild.training.updates import update_count, wanted_steps
from lorabuild.training.validation import held_back, split

COMPARED = 50  # jobs of a stage that are looked at for one that is alike: more would only take time


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes on the disk; None where nothing like it was built here."""

    seconds: float | None
    bytes: int | None


@dataclass(frozen=True)
class Steps:
    """A training in numbers. `exact`: batches are counted by bucket, else the sizes of the images are not known yet."""

    images: int
    samples: int  # images with their repeats
    batch: int
    batches: int  # an epoch
    exact: bool
    accumulation: int
    updates: int
    snapshots: int
    missing: tuple[int, ...] = ()  # of the snapshots those that are not in the store
    continues: bool = False  # the weights are there: it is trained for the missing snapshots alone

    @property
    def updates_per_epoch(self) -> float:
        return self.batches / self.accumulation

    @property
    def passes(self) -> float:
        """How often the training sees each sample. An update goes on over the end of an epoch."""
        return self.updates * self.accumulation / self.batches

    @property
    def trained(self) -> int:
        """The updates that are done: after the last missing snapshot nothing is wanted, if the weights are there."""
        return max(self.missing, default=0) if self.continues else self.updates


class Estimates:
    """What jobs will take. The earlier builds of a stage are looked up once."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._built: dict[str, list[tuple[Job, Record]]] = {}

    def of(self, outlook: Outlook, counted: Steps | None = None) -> Cost:
        """What the job will take; a training, as `counted`. Of a `maybe`, what it takes if it comes to that."""
        if outlook.event in ("fresh", "failed", "blocked"):
            return Cost(0.0, 0)
        if outlook.found and not outlook.found.missing:  # copied from the store
            return Cost(0.0, sum(publication.output.size for publication, _ in outlook.found.unpublished))
        job = outlook.job
        if (record := self._record(job) or self._like(job)) is None:
            return Cost(None, None)
        size = sum(_on_disk(job, role, output) for role, output in record.outputs.items())
        if outlook.event == "restored":  # what another job makes is copied
            return Cost(0.0, size // 2)
        if counted is None:
            return Cost(record.seconds, size)
        size = 0 if counted.continues else size
        size += len(counted.missing) * _on_disk(job, "step/0", record.outputs["weights"])
        work = _work(job.params, counted.trained) / _work(record.params, self._updates(record))
        return Cost(round(record.seconds * work, 3), size)

    def snapshot_bytes(self, job: Job) -> int | None:
        """What a snapshot takes, by the weights of the last training or of one like it; None if there is none."""
        record = self._record(job) or self._like(job)
        return record.outputs["weights"].size if record and "weights" in record.outputs else None

    def _updates(self, record: Record) -> int:
        """How many updates a training had, also where that is not in its settings."""
        if (steps := record.params["recipe"]["max_train_steps"]) is not None:
            return steps
        facts = self._engine.store.blob(record.outputs["facts.json"].digest)
        return json.loads(facts.read_bytes()).get("steps", 1) if facts.exists() else 1

    def _record(self, job: Job) -> Record | None:
        """The record of the job's last build."""
        last = self._engine.state.last(job.name)
        return self._engine.store.record(last[0]) if last else None

    def _like(self, job: Job) -> Record | None:
        """The record of the job of this stage whose settings differ least."""
        if job.stage not in self._built:
            others = (other for other in self._engine.jobs.values() if other.stage == job.stage)
            known = ((other, record) for other in others if (record := self._record(other)))
            self._built[job.stage] = list(islice(known, COMPARED))
        alike = self._built[job.stage]
        best = min(alike, key=lambda one: len(changes(_bare(job), _bare(one[0]))), default=None)
        return best[1] if best else None


def _bare(job: Job) -> dict[str, Any]:
    return {"version": 0, "params": job.params, "inputs": {}}


def _work(params: Mapping[str, Any], updates: int) -> int:
    """What a training's time grows with: the images that it sees."""
    recipe = params["recipe"]
    return max(1, updates) * recipe["train_batch_size"] * recipe["gradient_accumulation_steps"]


def _on_disk(job: Job, role: str, output: Output) -> int:
    """A file's bytes: once in the store, once more in build/ if it is published."""
    family, _, _ = role.rpartition("/")
    shown = job.stage == "base" or (f"{family}/" if family else role) in NAMES.get(job.stage, {})
    return output.size * (2 if shown else 1)


def steps(engine: Engine, outlook: Outlook, before: Mapping[str, Outlook]) -> Steps | None:
    """The updates of a training; None for other jobs, and where the images cannot be read."""
    job, found = outlook.job, outlook.found
    if job.stage != "train" or (data := _images(engine, job, before)) is None:
        return None
    recipe, (images, exact) = job.params["recipe"], data
    images = split(images, recipe)[0] if exact else images[held_back(len(images), recipe) :]
    batch, samples = recipe["train_batch_size"], sum(image["repeats"] for image in images)
    batches = batches_per_epoch(images, batch) if exact else ceil(samples / batch)
    wanted = wanted_steps(recipe, job.options["saved"], batches)
    return Steps(
        images=len(images),
        samples=samples,
        batch=batch,
        batches=batches,
        exact=exact,
        accumulation=recipe["gradient_accumulation_steps"],
        updates=update_count(recipe, batches),
        snapshots=len(wanted),
        missing=tuple(step for step in wanted if not found or f"step/{step}" not in found.outputs),
        continues=found is not None and all(role in found.outputs for role in job.outputs),
    )


def _images(engine: Engine, job: Job, before: Mapping[str, Outlook]) -> tuple[Sequence[Mapping[str, Any]], bool] | None:
    """The images of a training, from dataset.json if it is there (then with buckets: True), else from their folders."""
    item: Any = job.inputs["dataset"]
    dataset = before[item.job]
    if dataset.found and dataset.known:
        blob = engine.store.blob(dataset.found.outputs[item.role].digest)
        return json.loads(blob.read_bytes())["images"], True
    if dataset.event in ("failed", "blocked"):
        return None
    found = engine.known_inputs(item.job, list(engine.jobs[item.job].inputs))
    images = [image for one in found.values() for image in one.images]
    trained = [image.repeats for image in images if not image.settings.get("is_reg")]
    others = [image.repeats for image in images if image.settings.get("is_reg")]
    return [{"repeats": repeats} for repeats in trained + matched_repeats(others, sum(trained)) if repeats], False


def total(costs: Iterable[Cost]) -> tuple[float | None, int | None, int]:
    """(seconds, bytes, how many are not known) of all; None if none is known."""
    costs = list(costs)
    seconds = [one.seconds for one in costs if one.seconds is not None]
    sizes = [one.bytes for one in costs if one.bytes is not None]
    return round(sum(seconds), 3) if seconds else None, sum(sizes) if sizes else None, len(costs) - len(seconds)
