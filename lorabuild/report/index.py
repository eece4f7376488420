"""The index of the report: every project and variant with the state of its stages and the sizes of its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lorabuild.names import STAGES
from lorabuild.report.files import ProjectFiles, page_name

WEIGHTS = ("trained", "resized", "chopped")
MADE = ("train", "spectrum", "resize", "chop")  # of a variant by itself, or for it
WORST = ("fails", "missing", "stale", "never", "fresh")


def data(projects: Sequence[ProjectFiles]) -> dict[str, Any]:
    """The rows of the table, the stages that any of them has, and how many projects are in which state."""
    rows = [row for files in projects for row in _rows(files)]
    stages = [name for name in STAGES if any(name in row["states"] for row in rows)]
    counts = {state: sum(row["state"] == state and not row["variant"] for row in rows) for state in WORST}
    return {"rows": rows, "stages": stages, "counts": {state: count for state, count in counts.items() if count}}


def _rows(files: ProjectFiles) -> Iterator[dict[str, Any]]:
    """The project, its variants by hand, and its sweep in one."""
    yield _row(files) | {"sweep": ""}
    yield from (_row(one) | {"sweep": ""} for one in files.named.values())
    if swept := [_row(one) for one in files.variants.values() if one.swept]:
        count = len(swept)
        states = {stage: overall(row["states"][stage] for row in swept if stage in row["states"]) for stage in MADE}
        sizes = {role: [row["sizes"][role] for row in swept if role in row["sizes"]] for role in WEIGHTS}
        yield swept[0] | {
            "sweep": f"sweep of {count} variant{'s' * (count != 1)}",
            "states": {stage: state for stage, state in states.items() if any(stage in row["states"] for row in swept)},
            "state": overall(row["state"] for row in swept),
            "failure": next((row["failure"] for row in swept if row["failure"]), None),
            "sizes": {role: max(found) for role, found in sizes.items() if found},
            "least": {role: min(found) for role, found in sizes.items() if found},
        }


def _row(files: ProjectFiles) -> dict[str, Any]:
    states = {stage: one.state for stage, one in files.states.items()}
    sizes = {role: path.stat().st_size for role in WEIGHTS if (path := files.path(role)) is not None}
    failure = next((one.failure for one in files.states.values() if one.failure), None)
    return {
        "name": files.name,
        "page": page_name(files.project),
        "variant": "@" in files.name,
        "title": files.settings["project"].get("title") or "",
        "kind": files.settings["project"].get("kind") or "",
        "base": files.settings["project"]["base"],
        "states": states,
        "state": "fails" if failure else overall(states.values()),
        "failure": failure,
        "sizes": sizes,
    }


def overall(states: Any) -> str:
    """The state that counts of several: the worst."""
    found = set(states)
    return next((state for state in WORST if state in found), "never")
