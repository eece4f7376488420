"""Tell which of the jobs that wait should go first: those behind which most is still to come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean

from lorabuild.stage import Job
from lorabuild.training.updates import update_count

BATCHES = 100  # of an epoch, where the images are not counted yet
IMAGES_A_SECOND = 10.0  # that a training sees; only how trainings compare with each other comes of it


def urgencies(
    jobs: Mapping[str, Job], needs: Mapping[str, list[str]], seconds: Mapping[str, float | None]
) -> dict[str, float]:
    """Job -> seconds of it and of the longest chain of jobs that need it, one after the other.

    To begin with the largest of these is Hu's rule ("Parallel Sequencing and Assembly Line Problems", Operations Research 9,
    1961) with weights, which lists call highest level first. `needs`: job -> the jobs before it. `seconds`: what each took
    before; of one that was never built (None) it is taken from others of its stage.
    """
    return levels(expected(jobs, seconds), needs)


def levels(own: Mapping[str, float], needs: Mapping[str, list[str]]) -> dict[str, float]:
    """Job -> seconds of the longest chain that begins with it. `own`: job -> seconds of it alone."""
    after: dict[str, list[str]] = defaultdict(list)
    for name, before in needs.items():
        for one in before:
            after[one].append(name)
    found: dict[str, float] = {}

    def level(name: str) -> float:
        if name not in found:
            found[name] = own[name] + max(map(level, after[name]), default=0.0)
        return found[name]

    return {name: level(name) for name in own}


def expected(jobs: Mapping[str, Job], seconds: Mapping[str, float | None]) -> dict[str, float]:
    """Seconds of each job: its own, else as much a unit of work as others of its stage took."""
    rates: dict[str, list[float]] = defaultdict(list)
    for name, job in jobs.items():
        if (known := seconds.get(name)) is not None:
            rates[job.stage].append(known / _work(job))
    rate = {stage: mean(known) for stage, known in rates.items()}
    told = {name: seconds.get(name) for name in jobs}
    return {
        name: rate.get(job.stage, 1.0) * _work(job) if (known := told[name]) is None else known
        for name, job in jobs.items()
    }


def _work(job: Job) -> float:
    """What its time grows with, as far as that is known before it runs: of a training the images that it sees."""
    if job.stage != "train":
        return 1.0
    recipe = job.params["recipe"]
    images = update_count(recipe, BATCHES) * recipe["train_batch_size"] * recipe["gradient_accumulation_steps"]
    return max(images, 1) / IMAGES_A_SECOND
