"""`lorabuild gc`: tell what nothing refers to in the store, and with --yes free it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lorabuild import git
from lorabuild.engine import Engine
from lorabuild.errors import UsageError
from lorabuild.upkeep.garbage import KINDS, Item, free, garbage, take_stock
from lorabuild.upkeep.roots import PINS, lock_texts, lock_texts_of_refs, pin, roots
from lorabuild.verbs.common import megabytes, warn
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.within import engine_here, jobs_named

DAYS = 14.0
HELP = f"""\
Tells what could be freed in .lorabuild, and frees it with --yes. It keeps

  - what the manifests of the working folder name now, and what they named when they were built last,
  - what a lora.lock names: those of the working folder, of every branch, tag, remote, stash and work tree of git,
  - what is pinned: `lorabuild gc --pin chop:ember` adds what a target has now to {PINS}, a line a key,
  - what is younger than --days, of resize and chop at most [store] max_gb,

with all that these were made from. Nothing outside .lorabuild is ever removed."""


def parser() -> Parser:
    found = Parser(prog="lorabuild gc", description=HELP)
    found.add_argument("--yes", action="store_true", help="free it; without, nothing is removed")
    found.add_argument("--days", type=float, default=DAYS, metavar="N", help=f"what is younger stays ({DAYS:g})")
    found.add_argument("--pin", nargs="+", metavar="TARGET", help="keep what these have now, for good; frees nothing")
    found.add_argument("--json", action="store_true", help="the same as JSON")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    if not options.days >= 0:
        raise UsageError("lorabuild gc: --days: a number of days, 0 or more")
    if options.pin and options.yes:
        raise UsageError("lorabuild gc: --pin frees nothing: leave --yes out")
    with ExitStack() as stack:
        engine = stack.enter_context(engine_here(writing=options.yes or bool(options.pin)))
        if options.pin:
            return _pin(engine, options.pin, options.json)
        has_git = git.is_repository(engine.root)
        texts = [*lock_texts(engine.root), *(lock_texts_of_refs(engine.root) if has_git else [])]
        if not has_git:
            warn("no git repository: there are no branches to ask, so what is not wanted here is kept by its age alone")
        stock = take_stock(engine.root / ".lorabuild", engine.store)
        limit = engine.store.max_gb
        found = garbage(stock, roots(engine, texts), options.days, time.time(), limit and limit * 1e9)
        if options.yes:
            _free(found)
    told = _told(stock.items, found, options.yes) | {"git": has_git, "days": options.days}
    print(json.dumps(told, indent=2) if options.json else _text(told))
    return 0


def _free(found: Mapping[str, Sequence[Item]]) -> None:
    """Free it, with a count on a terminal."""
    total = sum(map(len, found.values()))
    for done, _ in enumerate(free(found), 1):
        if sys.stderr.isatty() and (done % 100 == 0 or done == total):
            sys.stderr.write(f"\r{done} of {total} freed" + "\n" * (done == total))


def _told(items: Mapping[str, Sequence[Item]], found: Mapping[str, Sequence[Item]], freed: bool) -> dict[str, Any]:
    kinds = {kind: {"count": len(found[kind]), "bytes": _bytes(found[kind])} for kind in KINDS}
    return {
        "freed": freed,
        "bytes": _bytes([item for kind in KINDS for item in found[kind]]),
        "kept_bytes": _bytes([item for kind in KINDS for item in items[kind]])
        - _bytes([item for kind in KINDS for item in found[kind]]),
        "kinds": kinds,
    }


def _bytes(items: Sequence[Item]) -> int:
    return sum(item.bytes for item in items)


def _text(told: Mapping[str, Any]) -> str:
    rows = [(kind, one["count"], megabytes(one["bytes"])) for kind, one in told["kinds"].items() if one["count"]]
    said = "freed" if told["freed"] else "would be freed"
    if not rows:
        return f"nothing to free; {megabytes(told['kept_bytes'])} are kept"
    lines = [f"{kind:8} {count:>7}  {size:>10}" for kind, count, size in rows]
    last = f"{megabytes(told['bytes'])} {said}, {megabytes(told['kept_bytes'])} are kept"
    return "\n".join([*lines, last if told["freed"] else f"{last}; `lorabuild gc --yes` frees them"])


def _pin(engine: Engine, names: Sequence[str], as_json: bool) -> int:
    new = pin(engine, jobs_named(engine, names))
    if as_json:
        print(json.dumps({"pinned": new}, indent=2))
    else:
        print("\n".join(f"pinned {name} as {key}" for key, name in new.items()) or "pinned already")
    return 0
