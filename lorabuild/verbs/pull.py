"""`lorabuild pull`: bring back the artifacts of a repository by its lock files, without data set, training or base."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorabuild.session import opened
from lorabuild.upkeep.pulling import Pulled, pull
from lorabuild.verbs.common import megabytes
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.shared import chosen, repository_root, using

HELP = """\
Restores what projects/<name>/lora.lock lists: from .lorabuild/store what is there, the rest from [store] remote. Each
download is checked by size, sha256 and xxh3 before it enters the store.

  lorabuild pull            every project that has a lock
  lorabuild pull ember      one"""


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    with redirect_stdout(sys.stderr), opened(repository_root(Path.cwd()), writing=True, building=False) as engine:
        remote = engine.sharing.remote if engine.sharing else None
        names = chosen(options.name, engine.projects) or [
            name for name, path in engine.lock_files.items() if path.exists()
        ]
        with using(remote):
            found = {name: pull(engine, remote, name) for name in names}
    if options.json:
        print(json.dumps({"projects": {name: _facts(one) for name, one in found.items()}}, indent=2))
    else:
        print("\n".join(_told(name, one) for name, one in found.items()) or "no project has a lock: nothing to pull")
    problems = [f"{name}: {problem}\n" for name, one in found.items() for problem in one.problems]
    sys.stderr.writelines(problems)
    return max((one.exit_code for one in found.values() if one.problems), default=0)


def parser() -> Parser:
    found = Parser(prog="lorabuild pull", description=HELP)
    found.add_argument("name", metavar="NAME", nargs="*", help="a project; all that have a lock, without any")
    found.add_argument("--json", action="store_true", help="what came, as JSON")
    return found


def _facts(done: Pulled) -> dict[str, Any]:
    facts = asdict(done)
    del facts["exit_code"]
    return facts


def _told(name: str, done: Pulled) -> str:
    parts = []
    if done.fetched:
        parts.append(f"{len(done.fetched)} of {done.lines} jobs fetched, {megabytes(done.bytes)}")
    if done.restored:
        parts.append(f"{len(done.restored)} files restored in build/")
    nothing = f"nothing restored, {len(done.problems)} problems" if done.problems else "nothing to do"
    lines = [f"{name}: {'; '.join(parts) or nothing}"]
    if done.unknown:
        lines.append(f"{name}: in the lock, but no longer in the manifest: {', '.join(done.unknown)}")
    if done.others:
        lines.append(
            f"{name}: {', '.join(done.others)}: another build of the same key than the one that the lock tells of"
        )
    return "\n".join(lines)
