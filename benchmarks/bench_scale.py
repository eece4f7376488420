"""What an executor costs a job, and how near to the ideal our order of jobs is: `python benchmarks/bench_scale.py`.

`overhead`: a repository with many variants of one chop, a stand-in of 0 s; `doit chop` of N of them and of one, each through an
executor, from nothing. What one job more takes is told beside what the machine asks for a process, and submitit's local
executor and Ray for an empty job of their own. `order`: 20 projects on 1 to 32 GPUs by the real dispatcher, tasks, threads and
slots under a virtual clock (virtual.py), beside a bound that no order can be below; with durations of a seeded spread, and with
those that real builds of small projects left in their run logs (recorded/). Exit code 1: under 90 % of the bound.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import virtual

from lorabuild.manifest import load
from lorabuild.rehearsal import priorities
from lorabuild.session import jobs_of
from lorabuild.stage import Job, dependencies
from lorabuild.stages import STAGES
from lorabuild.urgency import urgencies
from lorabuild.workers.slots import Slots

HERE = Path(__file__).resolve().parent
WANTED = 0.9  # of the ideal
GPUS = (1, 2, 4, 8, 16, 32)
RECORDED = HERE / "recorded/tiny.jsonl"  # run logs of real builds of the tutorial's projects, on two cores
KINDS = {"local": "a process", "slurm": "submitit's local executor", "ray": "Ray"}

# overhead

DODO = """\
from standins import install

install("chop")
from lorabuild.graph import DOIT_CONFIG, task_lorabuild
"""
SETTINGS = """\
[slots]
cpu = {at_once}
[store]
remote = "{remote}"
"""
AWAY = """\
[executor]
kind = "{kind}"
stages = ["chop"]
jobs = {at_once}
cpus = 1
cache = "{cache}"
"""
PLACE = {"slurm": '[executor.slurm]\ncluster = "local"\n', "ray": '[executor.ray]\naddress = "{address}"\n'}
SOURCE = '[project]\nbase = "tiny"\nsource = "in.safetensors"\n'


@dataclass(frozen=True)
class Cost:
    """Seconds of one job more, by the clock and of the processor; `bare`: of one of `reference`, both likewise."""

    kind: str
    jobs: int
    seconds: tuple[float, float]
    reference: str
    references: int
    bare: tuple[float, float]
    kept: float  # seconds of `doit` once all is there


def overhead(kind: str, jobs: int, references: int, at_once: int) -> Cost:
    """Of one executor. The time of a build of one job is that of its start, and is not counted."""
    with tempfile.TemporaryDirectory(prefix="lorabuild-scale-") as name, _cluster(kind) as address:
        folder, environment = Path(name), _environment()
        times = []
        for count in (1, jobs + 1):
            make(folder / str(count), kind, count, at_once, address)
            times.append(
                timed([sys.executable, "-m", "doit", "-n", str(at_once), "chop"], folder / str(count), environment)
            )
        again = timed([sys.executable, "-m", "doit", "chop"], folder / str(jobs + 1), environment)
        few, many = times
        bare = timed([sys.executable, "-c", BARE[kind], str(references), str(at_once), address], folder, environment)
        none = timed([sys.executable, "-c", BARE[kind], "0", str(at_once), address], folder, environment)
        a_job = tuple((more - less) / jobs for more, less in zip(many, few, strict=True))
        a_reference = tuple((more - less) / references for more, less in zip(bare, none, strict=True))
        return Cost(kind, jobs, a_job, KINDS[kind], references, a_reference, again[0])


def make(root: Path, kind: str, count: int, at_once: int, address: str) -> None:
    """A repository with so many chops to be made."""
    from standins import _write

    project = root / "projects/many"
    project.mkdir(parents=True)
    _write(project / "in.safetensors", "weights", "")
    variants = (f"[variants.v{number}.chop]\nweights = {{ OUT01 = {number / 1e5} }}\n" for number in range(1, count))
    (project / "lora.toml").write_text(SOURCE + '[chop]\nkeep = ["OUT01"]\n' + "".join(variants))
    (root / "dodo.py").write_text(DODO)
    commands = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["doit"]["plugins"]["command"]
    (root / "doit.cfg").write_text("[COMMAND]\n" + "".join(f"{name} = {place}\n" for name, place in commands.items()))
    settings = SETTINGS.format(at_once=at_once, remote="" if kind == "local" else f"file://{root}-remote")
    if kind != "local":
        settings += AWAY.format(kind=kind, at_once=at_once, cache=f"{root}-cache")
        settings += PLACE[kind].format(address=address)
    (root / "lorabuild.toml").write_text(settings)


# So many empty jobs, so many at once, in the way of each executor's own.
BARE = {
    "local": """\
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor
count, at_once = map(int, sys.argv[1:3])
with ThreadPoolExecutor(at_once) as threads:
    list(threads.map(lambda _: subprocess.run([sys.executable, "-c", "pass"], check=True), range(count)))
""",
    "slurm": """\
import submitit, sys
from concurrent.futures import ThreadPoolExecutor
count, at_once = map(int, sys.argv[1:3])
executor = submitit.LocalExecutor("bare")
with ThreadPoolExecutor(at_once) as threads:
    list(threads.map(lambda number: executor.submit(abs, number).result(), range(count)))
""",
    "ray": """\
import ray, sys
count, at_once = map(int, sys.argv[1:3])
ray.init(address=sys.argv[3], log_to_driver=False)
@ray.remote(num_cpus=1)
class Empty:
    def run(self):
        return 0
def one():
    actor = Empty.remote()
    return actor.run.remote()
left = count
while left > 0:
    ray.get([one() for _ in range(min(at_once, left))])
    left -= at_once
""",
}


@contextmanager
def _cluster(kind: str) -> Iterator[str]:
    """The address of a Ray cluster of two nodes on loopback: the one of the tests, which ends all that it has started."""
    if kind != "ray":
        yield ""
        return
    sys.path.insert(0, str(HERE.parent / "tests"))
    from ray_cluster import HEAD, OTHER, Cluster

    with tempfile.TemporaryDirectory(prefix="lbr-") as name:
        made, before = Cluster(Path(name)), dict(os.environ)
        made.environment["PYTHONPATH"] = _environment()["PYTHONPATH"]  # the nodes know the stand-ins, too
        os.environ.update(made.environment)
        try:
            for address in (HEAD, OTHER):
                made.start(address)
            yield made.address
        finally:
            made.kill()
            os.environ.clear()
            os.environ.update(before)


def _environment() -> dict[str, str]:
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds of a process by the clock, and of the processor with all that it has waited for. What fails ends the benchmark."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(
                f"{' '.join(command[:5])}: exit {process.returncode}\n{said.read().decode(errors='replace')[-3000:]}"
            )
    return seconds, usage.ru_utime + usage.ru_stime


def costs_shown(costs: Sequence[Cost]) -> str:
    """As a Markdown table. What Ray's processes take of the processor is not seen from here: they are not ours."""
    lines = [
        "| executor | jobs | a job | of it processor | an empty job of its own | of it processor | ratio | `doit`, all there |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in costs:
        own = f"{one.reference}: {one.bare[0]:.3f} s"
        cpu, bare = (f"{seconds[1]:.3f} s" if one.kind != "ray" else "–" for seconds in (one.seconds, one.bare))
        lines.append(
            f"| {one.kind} | {one.jobs} | {one.seconds[0]:.3f} s | {cpu} | {own} | {bare} "
            f"| {one.seconds[0] / one.bare[0]:.2f} | {one.kept:.2f} s |"
        )
    return "\n".join(lines)


# order

MANIFEST = """\
[project]
base = "tiny"
[[dataset.subset]]
image_dir = "images"
[recipe]
max_train_steps = {steps}
seed = {number}
[resize]
thr = -3
[chop]
keep = ["TE"]
[samples]
prompts = "prompts.txt"
"""
# Seconds of a stage, from and to. No real SDXL was measured (RESULTS.md): these are what one takes on a GPU of 2024 by its
# arithmetic and by what users report, images at 1 to 8 a second; only how they compare with each other matters here.
SPREAD = {
    "base": (1, 1),
    "norms": (40, 60),
    "dataset": (1, 4),
    "latents": (10, 90),
    "spectrum": (15, 40),
    "resize": (2, 5),
    "chop": (0.2, 1),
    "samples": (30, 150),
}
STEPS, STEP_SECONDS = (80, 800), (2.5, 4.0)


@dataclass(frozen=True)
class World:
    """Projects, their jobs, and what each takes."""

    projects: Sequence[str]
    jobs: Mapping[str, Job]
    seconds: Mapping[str, float]

    @property
    def needs(self) -> dict[str, list[str]]:
        return {name: dependencies(job, self.jobs) for name, job in self.jobs.items()}

    @property
    def wanted(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job.stage in ("chop", "samples")]


class _Forgetful:
    """No manifest is remembered."""

    def get(self, key: str) -> None:
        return None

    def put(self, key: str, value: str) -> None:
        pass


def recorded(logs: Sequence[Path]) -> dict[str, list[float]]:
    """Stage -> how long its jobs took, by run logs of real builds."""
    found: dict[str, list[float]] = {}
    for line in (json.loads(line) for log in logs for line in log.read_text().splitlines()):
        if line["event"] == "built":
            found.setdefault(line["job"].partition(":")[0], []).append(line["seconds"])
    return found


def world(projects: int, seed: int, times: Mapping[str, Sequence[float]] | None = None) -> World:
    """The jobs that lorabuild makes of so many manifests, with durations of a seeded spread, or drawn from recorded ones."""
    chance = random.Random(seed)

    def between(low: float, high: float) -> float:
        return math.exp(chance.uniform(math.log(low), math.log(high)))

    with tempfile.TemporaryDirectory(prefix="lorabuild-scale-") as name:
        steps = {}
        for number in range(projects):
            folder = Path(name, f"projects/p{number:02}")
            (folder / "images").mkdir(parents=True)
            (folder / "prompts.txt").write_text("a portrait\n")
            steps[f"train:p{number:02}"] = round(between(*STEPS))
            (folder / "lora.toml").write_text(MANIFEST.format(number=number, steps=steps[f"train:p{number:02}"]))
        repository = load(Path(name), _Forgetful())
        jobs = jobs_of(repository)
    drawn = {name: chance.choice(times[job.stage]) for name, job in jobs.items()} if times else {}
    seconds = drawn or {
        name: steps[name] * between(*STEP_SECONDS) if name in steps else between(*SPREAD[job.stage])
        for name, job in jobs.items()
    }
    return World(list(repository.projects), jobs, seconds)


def knowing(one: World, how: str, slots: Slots) -> dict[str, float]:
    """What is known of durations before the build -> the urgency of each job, as the builder finds it."""
    chance = random.Random(3)
    seconds: Mapping[str, float | None] = {}  # never built
    if how.startswith("recorded"):  # and this time a quarter longer or shorter
        seconds = {name: taken * chance.uniform(0.8, 1.25) for name, taken in one.seconds.items()}
    if how == "as they come":
        return dict.fromkeys(one.jobs, 0.0)
    if how.endswith("not rehearsed"):
        return urgencies(one.jobs, one.needs, seconds)
    takes = {name: slots.takes(STAGES[job.stage].slot)[0] for name, job in one.jobs.items()}
    return priorities(one.jobs, one.needs, seconds, one.jobs, takes, slots.room)


ORDERS = ("as they come", "never built", "recorded, not rehearsed", "recorded")


def makespan(one: World, gpus: int, how: str, cpus: int = 4) -> tuple[float, list[virtual.Began]]:
    """Seconds of a build with so many GPUs, and what began when."""
    slots = Slots(gpus, cpus, lambda: [str(number) for number in range(gpus)])
    urgency = knowing(one, how, slots)
    return virtual.build(
        one.jobs, one.projects, one.wanted, one.seconds.__getitem__, urgency.__getitem__, slots, gpus + cpus
    )


def bound(one: World, gpus: int) -> float:
    """Seconds that no order can be below: the longest chain; and, of any heavy jobs, the shortest way to one of them, the least
    time that so many GPUs take for all of them (`rounds`), and the shortest way from one of them.

    Tried for the jobs that begin no earlier than a head and are followed by no less than a tail, for all heads and tails that
    there are; Carlier's bound of one machine ("The one-machine sequencing problem", Eur. J. Operational Research 11, 1982) is
    of that form.
    """
    needs, heavy = one.needs, [name for name, job in one.jobs.items() if STAGES[job.stage].slot == "gpu"]
    tails = urgencies(one.jobs, needs, one.seconds)
    ends: dict[str, float] = {}

    def end(name: str) -> float:
        if name not in ends:
            ends[name] = one.seconds[name] + max(map(end, needs[name]), default=0.0)
        return ends[name]

    ways = [(end(name) - one.seconds[name], tails[name] - one.seconds[name], one.seconds[name]) for name in heavy]
    found = max(map(end, one.jobs))
    for head in {way[0] for way in ways}:
        late = sorted((way for way in ways if way[0] >= head), key=lambda way: way[1])
        for number, (_, tail, _) in enumerate(late):
            if not number or tail > late[number - 1][1]:
                found = max(found, head + rounds([way[2] for way in late[number:]], gpus) + tail)
    return found


def rounds(seconds: Sequence[float], machines: int) -> float:
    """Seconds that so many machines take at least for these jobs: the longest; all, shared out evenly; and of the k m + 1 longest
    some machine has k + 1, which are no less than the k + 1 shortest of them (Dell'Amico & Martello, "Optimal Scheduling of Tasks
    on Identical Parallel Processors", ORSA J. Computing 7, 1995)."""
    longest = sorted(seconds, reverse=True)
    whole = (sum(longest[k * machines - k : k * machines + 1]) for k in range((len(longest) - 1) // machines + 1))
    return max(sum(longest) / machines, *whole)


def order(
    projects: int, gpus: Sequence[int], seeds: Sequence[int], times: Mapping[str, Sequence[float]] | None = None
) -> list[dict[str, Any]]:
    """A row a number of GPUs: the part of the ideal that is reached, of several worlds the least, by what is known before."""
    rows = []
    worlds = [world(projects, seed, times) for seed in seeds]
    for count in gpus:
        least = [bound(one, count) for one in worlds]
        reached = {
            how: min(floor / makespan(one, count, how)[0] for one, floor in zip(worlds, least, strict=True))
            for how in ORDERS
        }
        rows.append({"gpus": count, "hours": least[0] / 3600, **reached})
    return rows


def order_shown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| GPUs | bound, hours | {' | '.join(ORDERS)} |", "|---" * (2 + len(ORDERS)) + "|"]
    lines += [
        f"| {row['gpus']} | {row['hours']:.2f} | {' | '.join(f'{row[how]:.1%}' for how in ORDERS)} |" for row in rows
    ]
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["overhead", "order"], help="overhead, order; both without one")
    parser.add_argument("--executor", action="append", choices=KINDS, help="local, slurm, ray; all without one")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--references", type=int, default=50, help="empty jobs of an executor's own")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--projects", type=int, default=20)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--worlds", type=int, default=5, help="spreads of durations")
    parser.add_argument(
        "--recorded",
        type=Path,
        nargs="+",
        default=[RECORDED],
        help="run logs, whose stage times the second table of order takes",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    said: dict[str, Any] = {}
    missed = False
    if "overhead" in options.parts:
        kinds = options.executor or list(KINDS)
        costs = [overhead(kind, options.jobs, options.references, options.at_once) for kind in kinds]
        said["overhead"] = [vars(one) for one in costs]
        print("" if options.json else costs_shown(costs))
    if "order" in options.parts:
        for name, times in (("order", None), ("order, recorded times", recorded(options.recorded))):
            said[name] = order(options.projects, options.gpus, range(options.worlds), times)
            missed |= any(row["recorded"] < WANTED for row in said[name])
            print("" if options.json else f"{name}\n\n{order_shown(said[name])}\n")
    if options.json:
        print(json.dumps(said, indent=1))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
