"""`lorabuild status`: every project and stage at a glance: fresh, stale, missing or never built, and its size."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabuild.colours import coloured
from lorabuild.ending import held_out_of
from lorabuild.engine import Engine
from lorabuild.forecast.outlook import Outlook, outlooks
from lorabuild.names import STAGES
from lorabuild.sampling.held_out import lines
from lorabuild.verbs.common import megabytes
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import reading, table

HELP = """\
A table of all projects (and variants) and stages, with the size of what stands in build/. Nothing is built.

  fresh    as its manifest and its data say
  stale    a build would make it anew or bring it from the store; or may, by what comes out before it
  missing  a file in build/ is gone; a build brings it back
  never    it was never built here
  fails    it cannot be built: `lorabuild why TARGET` says why

With held_out = true in [samples], a line below says what each file of a project keeps of what the training gained."""

FRESH, STALE, MISSING, NEVER, FAILS = "fresh", "stale", "missing", "never", "fails"
COLOURS = {FRESH: "green", STALE: "yellow", MISSING: "yellow", NEVER: "dim", FAILS: "red"}
NONE = "-"


@dataclass(frozen=True)
class Row:
    """A project, `project@variant` or base: the state of its job of each stage, and the bytes that stand of them."""

    kind: str  # "projects" or "bases"
    name: str
    states: Mapping[str, str]
    size: int
    held_out: Mapping[str, Any] | None = None  # what samples.json of a project tells of it


def parser() -> Parser:
    found = Parser(prog="lorabuild status", description=HELP)
    found.add_argument("--json", action="store_true", help="the same as JSON (docs/commands.md)")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    with reading() as engine:
        rows = _rows(engine)
    counts = Counter(state for row in rows for state in row.states.values())
    total = sum(row.size for row in rows)
    if options.json:
        print(json.dumps(_facts(rows, counts, total), indent=2))
    elif rows:
        print("\n".join([*_table(rows, counts, total), *_held_out(rows)]))
    else:
        print("no projects/**/lora.toml here")
    return 0


def _rows(engine: Engine) -> list[Row]:
    """Projects, each followed by its variants, then bases."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    for name, outlook in outlooks(engine, list(engine.jobs)).items():
        stage = outlook.job.stage
        row = ("bases" if stage in ("base", "norms") else "projects", outlook.job.target)
        rows.setdefault(row, {})[stage] = state_of(engine, outlook)
        sizes[row] += _size(engine, name)
    kinds = ("projects", "bases")
    order = sorted(rows, key=lambda row: (kinds.index(row[0]), _by_value(row[1])))
    return [
        Row(*row, rows[row], sizes[row], held_out_of(engine, row[1]) if "samples" in rows[row] else None)
        for row in order
    ]


def state_of(engine: Engine, outlook: Outlook) -> str:
    """fresh, stale, missing, never or fails."""
    match outlook.event:
        case "fresh":
            return FRESH
        case "failed" | "blocked":
            return FAILS
    if engine.state.last(outlook.job.name) is None:
        return NEVER
    gone = outlook.found and not outlook.found.missing and all(why == "missing" for _, why in outlook.found.unpublished)
    return MISSING if gone else STALE


def _by_value(name: str) -> list[Any]:
    """Numbers in a name count as numbers: @size8 before @size16."""
    project, _, variant = name.partition("@")
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", variant)
    return [project, *(float(part) if number % 2 else part for number, part in enumerate(parts))]


def _size(engine: Engine, name: str) -> int:
    """The bytes of what the job has published and still stands."""
    found = 0
    for path in engine.state.published_by(name):
        try:
            found += path.stat().st_size
        except OSError:
            pass  # gone
    return found


def _facts(rows: Sequence[Row], counts: Mapping[str, int], total: int) -> dict[str, Any]:
    """The object of --json."""
    kinds: dict[str, dict[str, Any]] = {"projects": {}, "bases": {}}
    for row in rows:
        measured = {"held_out": row.held_out} if row.held_out else {}
        kinds[row.kind][row.name] = {"stages": dict(row.states), "bytes": row.size, **measured}
    return kinds | {"total": {"states": dict(counts), "bytes": total}}


def _held_out(rows: Sequence[Row]) -> Iterator[str]:
    """What each project's files keep of what it learnt, as it was measured last."""
    for row in rows:
        state = row.states.get("samples")
        earlier = "" if state == FRESH else f" (measured before; the samples are {state})"
        yield from (f"{line}{earlier}" for line in (lines(row.name, row.held_out) if row.held_out else ()))


def _table(rows: Sequence[Row], counts: Mapping[str, int], total: int) -> list[str]:
    stages = [stage for stage in STAGES if any(stage in row.states for row in rows)]
    head = ["", *stages, "size"]
    body = [
        [
            f"base {row.name}" if row.kind == "bases" else row.name,
            *(row.states.get(stage, NONE) for stage in stages),
            megabytes(row.size),
        ]
        for row in rows
    ]
    end = ["total", *[""] * len(stages), megabytes(total)]
    said = ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts.get(state))
    return [*table([head, *body, end], (len(head) - 1,), COLOURS if coloured() else None), said]
