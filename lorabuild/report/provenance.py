"""Which job made what, out of what, with which versions, on which device and how long it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorabuild.report.files import ProjectFiles, StageState

TITLE = "Provenance"
FIRST_DIGITS = 12


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """The chain of records, stage by stage, and the versions that all of them share. None where nothing was built."""
    states = {one.job: one for owner in (files, *files.variants.values()) for one in owner.states.values()}
    built = [one for one in states.values() if one.record]
    if not built:
        return None
    makers = {one.key: one.job for one in built}
    versions = [one.record["made_with"] for one in built if one.record and one.record["made_with"]]
    shared = dict(versions[0].items()) if versions else {}
    for other in versions[1:]:
        shared = {name: version for name, version in shared.items() if other.get(name, version) == version}
    return {
        "shared": sorted(shared.items()),
        "rows": [_row(one, one.record, makers, shared) for one in built if one.record],
    }


def _row(
    state: StageState, record: Mapping[str, Any], makers: Mapping[str | None, str], shared: Mapping[str, str]
) -> dict[str, Any]:
    own = {name: version for name, version in record["made_with"].items() if shared.get(name) != version}
    return {
        "job": state.job,
        "key": state.key,
        "short": (state.key or "")[:FIRST_DIGITS],
        "seconds": record["seconds"],
        "own": sorted(own.items()),
        "inputs": list(_inputs(record, makers)),
        "outputs": [
            {"role": role, "digest": one["digest"], "short": one["digest"][:FIRST_DIGITS], "size": one["size"]}
            for role, one in sorted(record["outputs"].items())
        ],
    }


def _inputs(record: Mapping[str, Any], makers: Mapping[str | None, str]) -> Iterator[dict[str, str]]:
    """Role, digest, and the job that made it, where the record says."""
    made_from = record.get("made_from", {})
    for role, digest in sorted(record["inputs"].items()):
        maker = made_from.get(role, "")
        job = makers.get(maker) or makers.get(maker.partition("/")[0], "")
        yield {"role": role, "digest": digest, "short": digest[:FIRST_DIGITS], "job": job}
