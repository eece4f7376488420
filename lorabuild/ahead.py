"""Work ahead in threads: while one result is used, the next large ones are made, and no more."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

AHEAD = 3  # results that wait at a time
LARGE = 1 << 18  # numbers; below, handing the work to a thread takes longer than the work


def ahead(pool: Executor, jobs: Sequence[Callable[[], Any]], sizes: Sequence[int]) -> list[Callable[[], Any]]:
    """`jobs` as functions that are to be called once each, in order. Those of a size of LARGE and more begin earlier."""
    large = [number for number, size in enumerate(sizes) if size >= LARGE]
    under_way: dict[int, Future] = {}

    def call(number: int) -> Any:
        first = bisect_left(large, number)
        for following in large[first : first + AHEAD]:
            if following not in under_way:
                under_way[following] = pool.submit(jobs[following])
        return under_way.pop(number).result() if number in under_way else jobs[number]()

    return [partial(call, number) for number in range(len(jobs))]


def use_threads(number: int) -> None:
    """For the libraries that read their number of threads when they are imported."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(number)))


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
