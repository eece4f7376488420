"""`lorabuild push`: upload to the remote store what it lacks of what is built here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

from lorabuild.errors import JobError
from lorabuild.session import opened
from lorabuild.upkeep.pushing import push
from lorabuild.verbs.common import megabytes
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.shared import chosen, repository_root, using

HELP = """\
Uploads the records and files of what is built here, as the manifests are now, to [store] remote. A build does so by itself;
this is for what was built before there was a remote, or while it could not be reached.

  lorabuild push            every project
  lorabuild push ember      one, with all that it is made from"""


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    with redirect_stdout(sys.stderr), opened(repository_root(Path.cwd()), writing=False, building=False) as engine:
        sharing = engine.sharing
        if sharing is None or sharing.remote is None:
            raise JobError('no remote is named: [store] remote = "s3://bucket/prefix" in lorabuild.toml')
        if sharing.read_only:
            raise JobError("nothing is uploaded: [store] read_only = true")
        names = chosen(options.name, engine.projects)
        jobs = [name for name, job in engine.jobs.items() if not names or job.target.partition("@")[0] in names]
        with using(sharing.remote):
            done = push(engine, sharing.remote, jobs)
    if options.json:
        print(json.dumps(asdict(done), indent=2))
    else:
        there = f"; {len(done.there)} were there" if done.there else ""
        print(f"{len(done.uploaded)} jobs uploaded, {megabytes(done.bytes)}{there}")
    for why in dict.fromkeys(done.unbuilt.values()):  # one line for all that wait for the same images
        first, *more = [name for name, one in done.unbuilt.items() if one == why]
        sys.stderr.write(f"{first}{f' and {len(more)} more' if more else ''}: nothing to upload: {why}\n")
    return 0


def parser() -> Parser:
    found = Parser(prog="lorabuild push", description=HELP)
    found.add_argument("name", metavar="NAME", nargs="*", help="a project; all of them, without any")
    found.add_argument("--json", action="store_true", help="what was uploaded, as JSON")
    return found
