"""`lorabuild report`: the pages of build/report/, from what stands there now; nothing is built."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorabuild.report.collect import collected
from lorabuild.report.site import INDEX, Written, write_report
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import root_here

HELP = """\
Write build/report/index.html and a page a project, from what stands there now. Nothing is built: what is stale, failed or
was never built is shown as that. `doit report` builds first. Pages whose content has not changed stay as they are."""


def parser() -> Parser:
    found = Parser(prog="lorabuild report", description=HELP)
    found.add_argument("--json", action="store_true", help="what was written, as JSON (docs/commands.md)")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    written = refresh(root_here())
    print(json.dumps(facts(written), indent=2) if options.json else said(written))
    return 0


def refresh(root: Path) -> Written:
    """Bring the report of the repository up to date."""
    with collected(root) as (projects, state):
        return write_report(root, projects, state)


def facts(written: Written) -> dict[str, Any]:
    """The object of --json."""
    index = os.path.relpath(written.folder / INDEX)
    return {"index": index, "pages": written.pages, "made": list(written.made), "removed": list(written.removed)}


def said(written: Written) -> str:
    """One line on it."""
    made, where = len(written.made), os.path.relpath(written.folder / INDEX)
    return f"{where}: {written.pages} pages, {made} made anew" if made else f"{where}: {written.pages} pages, fresh"
