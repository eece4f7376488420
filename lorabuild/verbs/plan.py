"""`lorabuild plan`: what a build would do, why, and about how long and how large; nothing is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorabuild.engine import Engine
from lorabuild.forecast.estimate import Cost, Estimates, Steps, steps, total
from lorabuild.forecast.outlook import Outlook, outlooks
from lorabuild.forecast.pictures import Pictures, pictures
from lorabuild.progress import short
from lorabuild.reasons import FEW
from lorabuild.session import selected
from lorabuild.verbs.common import megabytes
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import reading, table

HELP = """\
What `doit` would do now, in order, with the reason of each job; nothing is built or written. Exit code 1 if anything
is stale, 0 if all is fresh.

  lorabuild plan                 all that plain `doit` builds
  lorabuild plan chop:ember      a job and what it needs; a project or a stage likewise

maybe: the job is built only if what is made before it comes out otherwise than last time. Times and sizes are those of
the last builds here, of the job or of one like it; a training's time goes with the images that it sees."""

LENGTHS = ("recipe.max_train_steps", "recipe.max_train_epochs")

# Event -> what is to be done
WORDS = {
    "built": "build",
    "restored": "restore",
    "published": "publish",
    "maybe": "maybe",
    "failed": "fail",
    "blocked": "blocked",
}


def parser() -> Parser:
    found = Parser(prog="lorabuild plan", description=HELP)
    found.add_argument("target", metavar="TARGET", nargs="*", help="a project, a stage or stage:project")
    found.add_argument("--json", action="store_true", help="the same as JSON (docs/commands.md)")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    with reading() as engine:
        found = outlooks(engine, selected(options.target, engine))
        stale = [outlook for outlook in found.values() if outlook.event != "fresh"]
        estimates = Estimates(engine)
        trainings = _trainings(engine, estimates, stale, found)
        likely = [outlook for outlook in stale if outlook.event in ("built", "maybe")]
        drawn = {outlook.job.name: one for outlook in likely if (one := pictures(engine, outlook, found))}
        counts = {name: one.steps for name, one in trainings.items()}
        costs = {outlook.job.name: estimates.of(outlook, counts.get(outlook.job.name)) for outlook in stale}
        projects = {outlook.job.project for outlook in stale}
        sweeps = {name: said for name, said in engine.sweeps.items() if name in projects}
    if options.json:
        print(json.dumps(_facts(found, stale, costs, trainings, drawn) | {"sweeps": sweeps}, indent=2))
    else:
        for name, said in sweeps.items():
            print(f"{name}: {said}")
        for line in _lines(found, stale, costs, trainings, drawn):
            print(line)
    return 1 if stale else 0


@dataclass(frozen=True)
class Planned:
    """A training that may run: its arithmetic, the bytes of a snapshot (None: unknown), and what its user should know."""

    steps: Steps
    snapshot_bytes: int | None
    notes: tuple[str, ...]


def _trainings(
    engine: Engine, estimates: Estimates, stale: Sequence[Outlook], found: Mapping[str, Outlook]
) -> dict[str, Planned]:
    likely = [outlook for outlook in stale if outlook.event in ("built", "maybe")]
    planned = {}
    for outlook in likely:
        if counted := steps(engine, outlook, found):
            size = estimates.snapshot_bytes(outlook.job)
            free = shutil.disk_usage(engine.root).free
            planned[outlook.job.name] = Planned(counted, size, tuple(_notes(outlook, counted, size, free)))
    return planned


def _notes(outlook: Outlook, counted: Steps, size: int | None, free: int) -> Iterator[str]:
    """What a training costs that its user may not expect."""
    name, _, variant = outlook.job.target.partition("@")
    if counted.continues and counted.missing:
        there = counted.snapshots - len(counted.missing)
        kept = f"; the {there} that are there are kept, and so are the weights" if there else "; the weights are kept"
        yield (
            f"{_steps(counted.missing)} {'was' if len(counted.missing) == 1 else 'were'} not saved: it is trained again "
            f"from the start to step {counted.trained}{kept}"
        )
    if any(reason.name in LENGTHS for reason in outlook.reasons):
        yield (
            "another length is another training, from the start; to go on from the finished one: "
            + (f'init = "{name}" in a project of its own, or ' if not variant else "in a project of its own, ")
            + f"init = a copy of build/{name}/{'-'.join(filter(None, [name, variant]))}.safetensors"
        )
    if size and (needed := 2 * size * len(counted.missing)) > free:
        yield f"the disk has {megabytes(free)} free, and the snapshots alone take {megabytes(needed)}"


def _steps(numbers: Sequence[int]) -> str:
    """`snapshots 2, 4 and 6`, of many the first ones."""
    if len(numbers) == 1:
        return f"snapshot {numbers[0]}"
    if len(numbers) > FEW + 1:
        return f"snapshots {', '.join(map(str, numbers[:FEW]))} and {len(numbers) - FEW} more"
    return f"snapshots {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _facts(
    found: Mapping[str, Outlook],
    stale: Sequence[Outlook],
    costs: Mapping[str, Cost],
    trainings: Mapping[str, Planned],
    drawn: Mapping[str, Pictures],
) -> dict[str, Any]:
    """The object of --json."""
    seconds, size, unknown = total(costs.values())
    return {
        "stale": bool(stale),
        "fresh": len(found) - len(stale),
        "jobs": [
            {
                "job": outlook.job.name,
                "event": outlook.event,
                "why": [reason.text for reason in outlook.reasons],
                "after": list(outlook.after),
                "seconds": costs[outlook.job.name].seconds,
                "bytes": costs[outlook.job.name].bytes,
                "training": _training(trainings.get(outlook.job.name)),
                "pictures": _pictures(drawn.get(outlook.job.name)),
            }
            for outlook in stale
        ],
        "total": {"jobs": len(stale), "seconds": seconds, "bytes": size, "unknown": unknown},
    }


def _pictures(drawn: Pictures | None) -> dict[str, Any] | None:
    return asdict(drawn) | {"total": drawn.total} if drawn else None


def _training(planned: Planned | None) -> dict[str, Any] | None:
    if planned is None:
        return None
    counted = planned.steps
    own = {"updates_per_epoch": counted.updates_per_epoch, "passes": counted.passes, "trained": counted.trained}
    rest = {"snapshot_bytes": planned.snapshot_bytes, "notes": list(planned.notes)}
    return {key: value for key, value in asdict(counted).items() if key != "continues"} | own | rest


def _lines(
    found: Mapping[str, Outlook],
    stale: Sequence[Outlook],
    costs: Mapping[str, Cost],
    trainings: Mapping[str, Planned],
    drawn: Mapping[str, Pictures],
) -> list[str]:
    if not found:
        return ["nothing to build: no projects/**/lora.toml here (`lorabuild new NAME` makes one)"]
    if not stale:
        return [f"nothing to do: {len(found)} jobs are fresh"]
    rows = [_row(outlook, costs[outlook.job.name]) for outlook in stale]
    lines = []
    for outlook, line in zip(stale, table(rows, right=(2, 3)), strict=True):
        lines.append(line)
        if planned := trainings.get(outlook.job.name):
            lines += [f"    {said}" for said in (_arithmetic(planned.steps, planned.snapshot_bytes), *planned.notes)]
        if shown := drawn.get(outlook.job.name):
            lines.append(f"    {shown.text}")
    return [*lines, _summary(stale, costs)]


def _row(outlook: Outlook, taken: Cost) -> tuple[str, ...]:
    size = "" if taken.bytes == 0 else _size(taken.bytes)
    seconds = "" if taken.seconds == 0 else _seconds(taken.seconds)
    return (outlook.job.name, WORDS[outlook.event], seconds, size, short(outlook.why))


def _arithmetic(counted: Steps, snapshot_bytes: int | None) -> str:
    """`4 images × repeats = 8 ÷ 2 a batch = 4 batches ÷ 1 accumulated = 4 updates an epoch; 12 updates = 3 passes`."""
    about = "" if counted.exact else "about "
    snapshots = f"; {counted.snapshots} snapshots" if counted.snapshots else ""
    if counted.snapshots and snapshot_bytes:
        whole = megabytes(counted.snapshots * snapshot_bytes)
        snapshots += f" × about {megabytes(snapshot_bytes)} = {whole}, in the store and in build/ each"
    return (
        f"{counted.images} images × repeats = {counted.samples} ÷ batch {counted.batch} = {about}{counted.batches} batches"
        f" ÷ accumulation {counted.accumulation} = {counted.updates_per_epoch:.4g} updates an epoch;"
        f" {counted.updates} updates in all, {counted.passes:.4g} passes over the data{snapshots}"
    )


def _summary(stale: Sequence[Outlook], costs: Mapping[str, Cost]) -> str:
    """`5 jobs would run, 3 of them maybe: about 36 s, about 12.4 MB`."""
    seconds, size, unknown = total(costs.values())
    running = [outlook.event for outlook in stale if outlook.event not in ("failed", "blocked")]
    parts = [f"{len(running)} job{'s' * (len(running) != 1)} would run"]
    if maybe := running.count("maybe"):
        parts[0] += f" ({maybe} maybe)"
    parts.append(f"about {_seconds(seconds)}" if seconds is not None else "time unknown")
    parts.append(f"about {_size(size)}" if size is not None else "disk unknown")
    if unknown and seconds is not None:
        parts.append(f"without {unknown} that were never built here")
    if failing := len(stale) - len(running):
        parts.append(f"{failing} would fail or wait for one that does")
    return ", ".join(parts)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return (
        f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _size(size: int | None) -> str:
    return "unknown" if size is None else megabytes(size)
