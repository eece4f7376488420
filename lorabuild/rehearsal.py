"""Try the order of a build's jobs on paper before they run, and look for a better one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from statistics import fmean

from lorabuild.stage import Job
from lorabuild.streams import python_random
from lorabuild.urgency import expected, levels

TRIES = 100
SIMULATED = 60_000  # jobs in all builds on paper together: a tenth of a second or two
SPREADS = (0.05, 0.1, 0.2)  # how far a priority may move in a try, as a part of it
# A build never takes what was foretold: an order is judged by the seconds as they are told, and by three sets of others. Judged
# by the told ones alone, the orders that were found were worse than the one begun with where that was good (docs/log.md).
SETS, OFF = 4, 0.25
GAIN = 0.002  # of the time, below which a try is no better: what is less is chance


def priorities(
    jobs: Mapping[str, Job],
    needs: Mapping[str, list[str]],
    seconds: Mapping[str, float | None],
    stale: Collection[str],
    takes: Mapping[str, Mapping[str, int]],
    room: Mapping[str, int],
) -> dict[str, float]:
    """Job -> how urgent it is, in seconds: of those that wait, the largest goes first.

    `seconds`: what each took before, None if it was never built. `stale`: those that will run; what is there already takes no
    time. `takes`: job -> places that it holds, by kind; `room`: how many there are. Jobs that will not run keep their level.
    """
    own = expected(jobs, seconds)
    plain = levels({name: own[name] if name in stale else 0.0 for name in jobs}, needs)
    run = {name: own[name] for name in jobs if name in stale}
    return plain | Paper(run, needs, takes, room).better(plain)


@dataclass(frozen=True)
class Paper:
    """A build without work: `seconds` of each job, the jobs before it, the places that it takes of those that there are.

    Whenever there is room, whoever fits and has the highest priority begins, as in `Slots`; of equals the first that came:
    list scheduling (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969).
    """

    seconds: Mapping[str, float]
    needs: Mapping[str, list[str]]
    takes: Mapping[str, Mapping[str, int]]
    room: Mapping[str, int]

    def better(self, first: Mapping[str, float], tries: int | None = None) -> dict[str, float]:
        """Priorities by which the build takes at most as long as by `first`: the mean of these seconds and of others like them.

        A local search over priorities, of which any assignment stands for an order that can be done ("random keys": Bean,
        ORSA J. Computing 6, 1994): all are moved a little at random, and what is shorter is gone on from. The same build
        always finds the same.
        """
        tries = tries_of(len(self.seconds)) if tries is None else tries
        best = [first[name] for name in self.seconds]
        if tries and (shortest := self._mean(best)) > self._least:
            chance = python_random(0, "rehearsal", "priorities").uniform
            for number in range(tries):
                spread = SPREADS[number % len(SPREADS)]
                other = [one * chance(1 - spread, 1 + spread) for one in best]
                if (span := self._mean(other)) < shortest * (1 - GAIN):
                    shortest, best = span, other
        return dict(zip(self.seconds, best, strict=True))

    def begins(self, priority: Mapping[str, float]) -> dict[str, float]:
        """Job -> second at which it begins."""
        began = self._run([priority[name] for name in self.seconds], [*self.seconds.values()])[1]
        return dict(zip(self.seconds, began, strict=True))

    def mean(self, priority: Mapping[str, float]) -> float:
        """Seconds of the whole build: what orders are judged by."""
        return self._mean([priority[name] for name in self.seconds])

    def _mean(self, priority: Sequence[float]) -> float:
        return fmean(self._run(priority, seconds)[0] for seconds in self._sets)

    @cached_property
    def _sets(self) -> list[list[float]]:
        """Seconds of each job: as they are told, and as they may come."""
        told, chance = list(self.seconds.values()), python_random(0, "rehearsal", "seconds").uniform
        return [told, *([one * chance(1 / (1 + OFF), 1 + OFF) for one in told] for _ in range(SETS - 1))]

    def _run(self, priority: Sequence[float], seconds: Sequence[float]) -> tuple[float, list[float]]:
        """(seconds of all, begins), jobs by their numbers. Those that wait stand in a line for each way of taking places."""
        line_of, ways, after, before = self._numbered
        free, begins, left = list(self.room.values()), [0.0] * len(seconds), list(before)
        lines: list[list[tuple[float, int, int]]] = [[] for _ in ways]
        ends: list[tuple[float, int]] = []
        ready, now, came = [job for job, count in enumerate(left) if not count], 0.0, 0
        while True:
            for job in ready:
                heappush(lines[line_of[job]], (-priority[job], came, job))
                came += 1
            while True:
                next_line = -1
                for number, way in enumerate(ways):
                    first = lines[number] and (next_line < 0 or lines[number][0] < lines[next_line][0])
                    if first and all(free[kind] >= count for kind, count in way):
                        next_line = number
                if next_line < 0:
                    break
                job = heappop(lines[next_line])[2]
                for kind, count in ways[next_line]:
                    free[kind] -= count
                begins[job] = now
                heappush(ends, (now + seconds[job], job))
            if not ends:
                return now, begins
            now, job = heappop(ends)
            done, ready = [job], []
            while ends and ends[0][0] <= now:
                done.append(heappop(ends)[1])
            for job in done:
                for kind, count in ways[line_of[job]]:
                    free[kind] += count
                for later in after[job]:
                    left[later] -= 1
                    if not left[later]:
                        ready.append(later)

    @cached_property
    def _numbered(
        self,
    ) -> tuple[list[int], list[list[tuple[int, int]]], list[list[int]], list[int]]:
        """By a job's number: its line, [line: (kind, how many) that it takes], jobs after it, how many are before it."""
        number = {name: count for count, name in enumerate(self.seconds)}
        kinds = {kind: count for count, kind in enumerate(self.room)}
        ways: dict[tuple[tuple[int, int], ...], int] = {}
        line_of = []
        for name in number:
            way = tuple(sorted((kinds[kind], count) for kind, count in self.takes[name].items()))
            line_of.append(ways.setdefault(way, len(ways)))
        after: list[list[int]] = [[] for _ in number]
        before = [0] * len(number)
        for name, mine in number.items():
            for needed in self.needs[name]:
                if needed in number:
                    after[number[needed]].append(mine)
                    before[mine] += 1
        return line_of, [list(way) for way in ways], after, before

    @cached_property
    def _least(self) -> float:
        """Seconds that no order can be below: the longest chain, or the work of a kind of place by how many there are."""

        def least(seconds: Sequence[float]) -> float:
            own = dict(zip(self.seconds, seconds, strict=True))
            work = {kind: sum(own[name] * self.takes[name].get(kind, 0) for name in own) for kind in self.room}
            return max([*levels(own, needs).values(), *(work[kind] / count for kind, count in self.room.items())])

        needs = {name: [one for one in self.needs[name] if one in self.seconds] for name in self.seconds}
        return fmean(map(least, self._sets)) if self.seconds else 0.0


def tries_of(jobs: int) -> int:
    """How many orders are tried: fewer where there are more jobs, so that it takes no longer."""
    return min(TRIES, SIMULATED // (SETS * max(jobs, 1)))
