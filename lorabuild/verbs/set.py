"""`lorabuild set`: change values of manifests in place; comments, order and spacing stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lorabuild.errors import UsageError, UserError, near_miss
from lorabuild.files import rewrite
from lorabuild.forecast.outlook import outlooks
from lorabuild.manifest.continued import KEYS as INIT
from lorabuild.manifest.layers import KeyPath, Reader, shown
from lorabuild.manifest.merge import Merged, merge
from lorabuild.reasons import plain
from lorabuild.scaffold.assign import Assignment, Edited, assignment, edited
from lorabuild.scaffold.keys import key_path
from lorabuild.scan import Scan
from lorabuild.session import opened, targets
from lorabuild.tomltext import written
from lorabuild.verbs.common import warn
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import root_here

HELP = """\
Change values of a project's manifest in place: comments, order and spacing stay. What a build would refuse changes nothing.

  lorabuild set ember resize.thr=-3.2                    a number, true, "text": TOML, or a bare word
  lorabuild set ember chop.keep=TE,OUT01                 a list, also as ["TE", "OUT01"]
  lorabuild set ember dataset.subset[0].num_repeats=2    a table of a list, counted from 0
  lorabuild set ember variants.mini.resize.thr=-3        a table that is not there yet is added
  lorabuild set ember resize.size=16                     takes the place of resize.thr
  lorabuild set ember chop.weights=                      removes a key; so does --unset chop.weights
  lorabuild set "em*" recipe.seed=7                      several projects: all of them, or none"""

# What may have to be read whole first, so that a forecast is not quick: gigabytes of a base, thousands of images.
SLOW = [
    ("extends",),
    ("dataset",),
    *(("project", key) for key in ("base", "source")),
    *(("recipe", key) for key in INIT),
]
WORDS = {
    "built": "will be built",
    "restored": "will be restored",
    "published": "will get another header",
    "maybe": "after that, if it comes out otherwise",
    "failed": "cannot be built (`lorabuild plan` says why)",
    "blocked": "must wait for what cannot be built",
}


def parser() -> Parser:
    found = Parser(prog="lorabuild set", description=HELP)
    found.add_argument("project", metavar="PROJECT", help='a project, or several by a glob: "em*"')
    found.add_argument("values", metavar="KEY=VALUE", nargs="*", help="a key of the manifest and its new value")
    found.add_argument("--unset", metavar="KEY", action="append", default=[], help="remove a key; may stand again")
    found.add_argument("--dry-run", "-n", action="store_true", help="say what would change, and write nothing")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    root = root_here()
    assignments = [*map(assignment, options.values), *(Assignment(key_path(key), "") for key in options.unset)]
    if not assignments:
        raise UsageError(f"lorabuild set {options.project}: KEY=VALUE is missing, as in resize.thr=-3.2")
    manifests = _chosen(root, options.project)
    changes = {path: edited(root, path, assignments) for path in manifests}  # all are right before one is written
    for path, change in changes.items():
        lines = list(_lines(root, path, change, assignments))
        if change.data != path.read_bytes() and not options.dry_run:
            rewrite(path, change.data, root / ".lorabuild")
        for line in lines:
            print(line)
        for problem in change.left:
            warn(f"still wrong: {problem}")
    if options.dry_run:
        print("nothing was written (--dry-run)")
    elif not any(one.path[: len(slow)] == slow for one in assignments for slow in SLOW):
        for line in _forecast(root, [path.parent.name for path in manifests]):
            print(line)
    return 0


def _chosen(root: Path, name: str) -> list[Path]:
    """The manifests of the projects that a name or a glob means. Raises UsageError with a near miss."""
    found = {path.parent.name: path for path in Scan().manifests(root / "projects")[0]}
    chosen = [path for project, path in sorted(found.items()) if project == name or fnmatchcase(project, name)]
    if not chosen:
        said = "matches no project" if any(sign in name for sign in "*?[") else "no such project"
        raise UsageError(f"{name}: {said}{near_miss(name, found)}")
    return chosen


def _lines(root: Path, manifest: Path, change: Edited, assignments: Sequence[Assignment]) -> Iterator[str]:
    """`projects/ember/lora.toml:17: resize.thr: -2.5 -> -3.2`, a line a key."""
    file = shown(manifest, root)
    before, after = _merged(root, manifest, None), _merged(root, manifest, change.data)
    for one in dict.fromkeys(assignments):
        old, new = _told(before, one.path, file), _told(after, one.path, file)
        place = after.place(one.path)
        where = f"{file}:{place.line}" if place.layer.file == file else file
        yield f"{where}: {one.key}: {f'{old} -> {new}' if old != new else f'{new} already'}"
    for note in change.notes:
        yield f"{file}: {note}"


def _merged(root: Path, manifest: Path, data: bytes | None) -> Merged:
    reader = Reader(root, instead=None if data is None else {manifest: data})
    layer = reader.read(manifest)
    assert layer is not None  # it was read before
    return merge(reader.stack(layer)[0])


def _told(merged: Merged, path: KeyPath, file: str) -> str:
    """A value as TOML writes it, and where it stands if not in the manifest itself."""
    value: Any = merged.values
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return "(the default)"
    place = merged.place(path)
    return written(value, plain) + ("" if place.layer.file == file else f" ({place.layer.file}:{place.line})")


def _forecast(root: Path, projects: Sequence[str]) -> Iterator[str]:
    """What `doit` would now do with projects that were built before; of others there is nothing new to tell."""
    try:
        with opened(root, writing=False, building=False) as engine:
            known = targets(engine.jobs, engine.projects)
            names = [
                job
                for project in projects
                for job in known.get(project, ())
                if engine.jobs[job].stage in engine.default
            ]
            if not any(list(engine.state.published_by(name)) for name in names):
                return
            found = outlooks(engine, names)
    except UserError:  # another project is wrong: its own build tells
        return
    stale = [one for one in found.values() if one.event != "fresh"]
    if not stale:
        yield "nothing is to be built"
    for event, words in WORDS.items():
        if jobs := [one.job.name for one in stale if one.event == event]:
            yield f"{', '.join(jobs)} {words}"
