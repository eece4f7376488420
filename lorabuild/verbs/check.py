"""`lorabuild check`: all that is wrong with manifests, images, captions and recipes, before any heavy work."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorabuild.checks.last import remember
from lorabuild.checks.project import Checked
from lorabuild.checks.repository import Report, check
from lorabuild.colours import coloured, paint
from lorabuild.findings import Finding
from lorabuild.pointing import pointed
from lorabuild.session import state_of
from lorabuild.training.memory import said
from lorabuild.training.updates import update_count
from lorabuild.verbs.common import megabytes
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import root_here, table

HELP = """\
Looks at manifests, bases, images (each is decoded whole), captions, tokens, buckets, recipe and prompts, and tells all
findings at once. Nothing is built, changed or removed. Exit code 1 with a finding of level error, 3 with a wrong TOML file.

`lorabuild explain CODE` says what a finding means; [check] levels in a manifest makes it "off", "warn" or "error"."""

COLOURS = {"error": "red", "warn": "yellow"}


def parser() -> Parser:
    found = Parser(prog="lorabuild check", description=HELP)
    found.add_argument("names", nargs="*", metavar="NAME", help="projects; all without one")
    found.add_argument("--images", action="store_true", help="a line an image: size, bucket, crop, scale, tokens")
    found.add_argument("--json", action="store_true", help="images and findings as JSON (docs/commands.md)")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    root = root_here()
    warnings.simplefilter("ignore")  # PIL's, of pictures that it reads all the same: what counts is among the findings
    with state_of(root) as state:
        report = check(root, options.names, state, _told)
        remember(report, state, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")  # for the report
    if options.json:
        print(json.dumps(_facts(report), indent=2))
    else:
        print("\n".join(_lines(root, report, options.images)))
    return report.exit_code


def _told(done: int, of: int) -> None:
    """A line on a terminal, which the next one replaces; nothing elsewhere."""
    if sys.stderr.isatty() and (done % 20 == 0 or done == of):
        sys.stderr.write(f"\r{done} of {of} images" if done < of else "\r\033[K")
        sys.stderr.flush()


def _facts(report: Report) -> dict[str, Any]:
    """The object of --json."""
    projects = {}
    for name, findings in report.findings.items():
        images = report.projects[name].images() if name in report.projects else []
        projects[name] = {"images": images, "findings": [one.facts for one in findings]}
    return {"projects": projects, "findings": [one.facts for one in report.others]}


def _lines(root: Path, report: Report, images: bool) -> Iterator[str]:
    if not report.findings and not report.others:
        yield "no projects/**/lora.toml here"
        return
    for name, findings in report.findings.items():
        yield f"{name}:"
        if name in report.projects:
            yield from (f"  {line}" for line in _summary(report.projects[name], images))
        yield from _told_findings(root, findings)
        yield ""
    yield from _told_findings(root, report.others)
    everything = [*report.others, *(one for findings in report.findings.values() for one in findings)]
    counts = Counter(one.level for one in everything)
    yield ", ".join(
        _counted(number, word)
        for number, word in ((len(report.findings), "project"), (counts["error"], "error"), (counts["warn"], "warning"))
    )


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _told_findings(root: Path, findings: Iterable[Finding]) -> Iterator[str]:
    """A line each, and below it the line of TOML that it is about, with ^~~~ under what is meant."""
    for one in findings:
        colour = COLOURS[one.level] if coloured() else ""
        yield paint(str(one), colour) if colour else str(one)
        if excerpt := pointed(root, one.file, one.line, one.message):
            text, below = excerpt
            yield text
            yield paint(below, colour) if colour else below


def _summary(checked: Checked, images: bool) -> Iterator[str]:
    """What there is, in numbers."""
    if images and checked.placed:
        yield from _image_table(checked)
    if checked.placed:
        yield from _bucket_table(checked)
        yield _arithmetic(checked)
    if checked.tokens:
        limit = checked.project.settings["dataset"]["max_token_length"]
        counts = checked.tokens.values()
        yield f"captions: {min(counts)} to {max(counts)} tokens, {limit} count"
    if checked.adapter:
        yield _adapter(checked.adapter, checked.snapshots)
    if checked.memory:
        yield f"training: it {said(checked.memory)}"
    yield from checked.notes


def _adapter(adapter: Mapping[str, Any], snapshots: int) -> str:
    """In numbers. What a file's header says in words comes on top of its size."""
    parts = " + ".join(f"{count} {part}" for part, count in adapter["modules"].items() if count)
    files = f"{megabytes(adapter['bytes'])} a file, {_counted(snapshots, 'snapshot')}"
    return f"adapter: {parts} modules, {adapter['parameters']:,} parameters, {files}"


def _image_table(checked: Checked) -> list[str]:
    rows = [["image", "size", "resized", "bucket", "crop", "scale", "tokens"]]
    for one in checked.placed:
        tokens = checked.tokens.get(id(one.entry))
        sizes = [_x(one.size), _x(one.place.resized), _x(one.place.bucket)]
        ends = [f"{one.crop_loss:.1%}", f"{one.scale:.2f}", "?" if tokens is None else str(tokens)]
        rows.append([one.entry.shown, *sizes, *ends])
    return table(rows, right=(1, 2, 3, 4, 5, 6))


def _bucket_table(checked: Checked) -> list[str]:
    rows = [["bucket", "images", "samples", "batches", "last", "crop up to", "scale up to"]]
    for one in checked.buckets:
        counts = [one.images, one.samples, one.batches, one.tail or "full"]
        rows.append([_x(one.size), *map(str, counts), f"{one.crop_loss:.1%}", f"{one.scale:.2f}"])
    return table(rows, right=(1, 2, 3, 4, 5, 6))


def _arithmetic(checked: Checked) -> str:
    """Images to updates, as `plan` has it."""
    recipe = checked.project.settings["recipe"]
    images, samples, batches = (
        sum(getattr(b, key) for b in checked.buckets) for key in ("images", "samples", "batches")
    )
    said = f"{images} images × repeats = {samples}"
    if not checked.trains:
        return said
    accumulation, updates = recipe["gradient_accumulation_steps"], update_count(recipe, batches)
    return (
        f"{said} ÷ batch {recipe['train_batch_size']} = {batches} batches ÷ accumulation {accumulation} = "
        f"{batches / accumulation:.4g} updates an epoch; {updates} updates in all, "
        f"{updates * accumulation / batches:.4g} passes over the data"
    )


def _x(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
