"""`lorabuild why`: why a job is stale, from job to job down to the value, its file and its line; or why it was built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorabuild.forecast.causes import Cause, Link, chain
from lorabuild.history import Past
from lorabuild.session import selected
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import reading

HELP = """\
Why a job is stale: the chain from it to the value that changed, with the file and line where that stands now. Of a
fresh job, when and why it was built last, as far as the run logs that are kept go back. Nothing is built.

"may be": it is fresh after all if what is made before it comes out as it did last time.

  lorabuild why chop:ember       a job
  lorabuild why ember            each stale job of a project; a stage likewise"""


def parser() -> Parser:
    found = Parser(prog="lorabuild why", description=HELP)
    found.add_argument("target", metavar="TARGET", help="stage:project, a project or a stage")
    found.add_argument("--json", action="store_true", help="the same as JSON (docs/commands.md)")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    with reading() as engine:
        wanted = selected([options.target], engine)
        links, root = chain(engine, wanted), engine.root
    if options.json:
        asked = [link for link in links if link.job in wanted]
        fresh = all(link.event == "fresh" for link in asked)
        found = {"target": options.target, "fresh": fresh, "jobs": [_facts(link, root) for link in links]}
        print(json.dumps(found, indent=2))
        return 0
    for link in links:
        for line in _lines(link, root):
            print(line)
    return 0


def _lines(link: Link, root: Path) -> Iterator[str]:
    """A job, and indented below it what is known."""
    because = ", ".join(link.because)
    match link.event:
        case "fresh" if link.because:
            yield f"{link.job} is fresh once {because} is built"
        case "fresh":
            yield f"{link.job} is fresh"
            yield f"    {_told(link.last, root)}"
        case "failed":
            yield f"{link.job} cannot be built:"
        case "blocked":
            yield f"{link.job} cannot be built because of {because}"
        case "maybe":
            yield f"{link.job} may be stale because of {because}"
        case _:
            yield f"{link.job} is stale" + (f" because of {because}" if because else ":")
    for cause in link.causes:
        yield f"    {cause}"
    if link.failed:
        log = f"; log: {_shown(link.log, root)}" if link.log else ""
        yield f"    failed before, {link.failed.when}: {'; '.join(link.failed.why)}{log}"


def _told(past: Past | None, root: Path) -> str:
    if past is None:
        return "the run logs that are kept do not tell when it was built"
    why = f": {'; '.join(past.why)}" if past.why else ""
    return f"{past.event} {past.when} in {past.seconds:.1f} s{why} ({_shown(past.run, root)})"


def _facts(link: Link, root: Path) -> dict[str, Any]:
    """A job in the object of --json."""
    return {
        "job": link.job,
        "event": link.event,
        "because": list(link.because),
        "reasons": [_cause(cause) for cause in link.causes],
        "failed": _past(link.failed, root) | {"log": _shown(link.log, root)} if link.failed else None,
        "last": _past(link.last, root) if link.last else None,
    }


def _cause(cause: Cause) -> dict[str, Any]:
    file, line = cause.spot or (None, None)
    return {"kind": cause.reason.kind, "name": cause.reason.name, "text": str(cause), "file": file, "line": line}


def _past(past: Past, root: Path) -> dict[str, Any]:
    return {
        "event": past.event,
        "when": past.when,
        "seconds": past.seconds,
        "why": list(past.why),
        "run": _shown(past.run, root),
    }


def _shown(path: Path | None, root: Path) -> str | None:
    return path.relative_to(root).as_posix() if path else None
