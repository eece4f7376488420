"""`lorabuild report`: the pages of build/report/, from what stands there now; nothing is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lorabuild.report.collect import collected
from lorabuild.report.site import Written, write_report
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import root_here

HELP = """\
Write build/report/index.html and a page a project, from what stands there now. Nothing is built: what is stale, failed or
was never built is shown as that. `doit report` builds first. Pages whose content has not changed stay as they are."""


def parser() -> Parser:
    return Parser(prog="lorabuild report", description=HELP)


def main(args: Sequence[str]) -> int:
    parser().parse_args(args)
    print(said(refresh(root_here())))
    return 0


def refresh(root: Path) -> Written:
    """Bring the report of the repository up to date."""
    with collected(root) as (projects, state):
        return write_report(root, projects, state)


def said(written: Written) -> str:
    """One line on it."""
    made, where = len(written.made), os.path.relpath(written.folder / "index.html")
    return f"{where}: {written.pages} pages, {made} made anew" if made else f"{where}: {written.pages} pages, fresh"
