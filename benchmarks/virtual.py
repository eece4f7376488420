"""Run doit's own threads on a clock that only stands still while one of them works: hours of builds pass in a second.

doit's dispatcher and runner, our tasks and our slots are the real ones; what they wait by (doit's queues, the slots' condition)
is exchanged for waits that the clock knows of. When all threads wait, and nothing that any of them waits for has come, time goes
on to the end of the job that ends first.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from doit.control import TaskControl
from doit.dependency import Dependency, JSONCodec, MD5Checker
from doit.loader import generate_tasks
from doit.runner import MThreadRunner

from lorabuild.graph.books import Memory, Reporter
from lorabuild.graph.run import _threads
from lorabuild.graph.tasks import running, task_lorabuild
from lorabuild.session import targets
from lorabuild.stage import Job
from lorabuild.stages import STAGES
from lorabuild.workers.slots import Slots

Began = tuple[float, str]  # seconds, job


class Clock:
    """Waits for threads that it knows: the one that made it, and each `Child`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.changed = threading.Condition(threading.RLock())
        self._there = 1
        self._waits: dict[int, Callable[[], bool]] = {}  # by thread
        self._ends: list[float] = []

    def wait_until(self, come: Callable[[], Any]) -> None:
        with self.changed:
            self._waits[threading.get_ident()] = come
            while not come():
                if len(self._waits) == self._there and not any(other() for other in self._waits.values()):
                    self.now = heapq.heappop(self._ends)
                    self.changed.notify_all()
                else:
                    self.changed.wait()
            del self._waits[threading.get_ident()]

    def sleep(self, seconds: float) -> None:
        with self.changed:
            end = self.now + seconds
            heapq.heappush(self._ends, end)
            self.wait_until(lambda: self.now >= end)

    def count(self, threads: int) -> None:
        with self.changed:
            self._there += threads
            self.changed.notify_all()


class Queue:
    """What doit uses of a queue.Queue."""

    def __init__(self, clock: Clock):
        self._clock, self._items = clock, deque[Any]()

    def put(self, item: Any) -> None:
        with self._clock.changed:
            self._items.append(item)
            self._clock.changed.notify_all()

    def get(self) -> Any:
        with self._clock.changed:
            self._clock.wait_until(lambda: self._items)
            return self._items.popleft()

    def empty(self) -> bool:
        return not self._items


class Condition:
    """What Slots uses of a threading.Condition."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self.notify_all = clock.changed.notify_all

    def __enter__(self) -> None:
        self._clock.changed.acquire()

    def __exit__(self, *error: object) -> None:
        self._clock.changed.release()

    def wait_for(self, come: Callable[[], bool]) -> None:
        self._clock.wait_until(come)


def build(
    jobs: Mapping[str, Job],
    projects: Sequence[str],
    wanted: Sequence[str],
    seconds: Callable[[str], float],
    urgency: Callable[[str], float],
    slots: Slots,
    at_once: int,
) -> tuple[float, list[Began]]:
    """`doit -n AT_ONCE WANTED` of these jobs, none of which is fresh: (seconds that it takes, what began when, in order)."""
    clock, began = Clock(), list[Began]()
    slots._changed = Condition(clock)  # type: ignore[assignment]
    slots.limit(at_once)

    def realise(name: str) -> None:
        with slots.place(STAGES[jobs[name].stage].slot, urgency=lambda: urgency(name)):
            began.append((clock.now, name))
            clock.sleep(seconds(name))

    class Child(MThreadRunner.DaemonThread):  # type: ignore[misc,valid-type]
        def start(self) -> None:
            clock.count(1)
            super().start()

        def run(self) -> None:
            super().run()
            clock.count(-1)

    class Runner(MThreadRunner):  # type: ignore[misc,valid-type]
        Queue = staticmethod(lambda: Queue(clock))

    Runner.Child = Child
    # What our tasks and the number of our threads ask of an engine.
    engine: Any = SimpleNamespace(
        jobs=jobs, projects=projects, stages=STAGES, away=None, fresh=lambda name: False, realise=realise
    )
    running.engine, running.builds = engine, True
    try:
        control = TaskControl(generate_tasks("lorabuild", task_lorabuild()))
        control.process([one for name in wanted for one in targets(jobs, projects)[name]])
        books = Dependency(Memory, "", checker_cls=MD5Checker, codec_cls=JSONCodec)
        runner = Runner(books, Reporter(None, {}), num_process=_threads(at_once, engine))
        if runner.run_all(control.task_dispatcher()):
            raise RuntimeError("the virtual build failed")
    finally:
        running.engine, running.builds = None, False
    return clock.now, began
