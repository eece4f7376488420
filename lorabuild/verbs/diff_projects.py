"""Compare two projects, or one at two commits: resolved settings, images and captions, and what was built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorabuild.locks.lockfile import Lines
from lorabuild.names import STAGES
from lorabuild.verbs.common import megabytes
from lorabuild.verbs.diff_sides import Image, Side


def diff_projects(a: Side, b: Side) -> dict[str, Any]:
    """What differs, as plain data; `data` and `artifacts` are None where one side does not know its own."""
    settings = list(_settings(a.settings, b.settings))
    known = bool(a.made and b.made)
    artifacts = list(_artifacts(a.made, b.made)) if known else None
    data = _data(a, b) if known else None
    same = not settings and not artifacts and not data
    return {"same": same, "settings": settings, "data": data, "artifacts": artifacts}


def text_of(found: Mapping[str, Any]) -> str:
    lines = [f"{row['key']}: {_plain(row['a'])} -> {_plain(row['b'])}" for row in found["settings"]]
    if found["artifacts"] is None:
        lines.append("images, artifacts: not compared, one of them has no lock and is not built")
    elif found["data"] is None:
        lines.append("images: another data set; its list is not in this store, so that its images cannot be told")
    lines += [f"{row['image']}: {_of_image(row)}" for row in found["data"] or ()]
    lines += [f"{row['job']} {row['role']}: {_of_artifact(row)}" for row in found["artifacts"] or ()]
    return "\n".join(lines)


# settings


def _settings(a: Mapping[str, Mapping], b: Mapping[str, Mapping]) -> Iterator[dict[str, Any]]:
    """A row a setting that differs. Of a variant those that do not differ in the project likewise."""
    rows_of_all: list[tuple[str, Any, Any]] = []
    for variant in sorted({*a, *b}):
        if variant not in a or variant not in b:
            yield {"key": f"variants.{variant}", "a": _own(a, variant), "b": _own(b, variant)}
            continue
        one, other = a[variant], b[variant]
        found = [
            (key, one.get(key), other.get(key)) for key in sorted({*one, *other}) if one.get(key) != other.get(key)
        ]
        for key, was, now in found:
            if (key, was, now) not in rows_of_all:
                yield {"key": f"variants.{variant}.{key}" if variant else key, "a": was, "b": now}
        rows_of_all += [] if variant else found


def _own(settings: Mapping[str, Mapping[str, Any]], variant: str) -> dict[str, Any] | None:
    """What a variant has that its project has not; None if there is no such variant."""
    if variant not in settings:
        return None
    return {key: value for key, value in settings[variant].items() if settings[""].get(key) != value}


# images


def _data(a: Side, b: Side) -> list[dict[str, Any]] | None:
    """A row an image that differs; None if the data sets differ and one of their lists is not in the store."""
    digests = [side.made["dataset"].outputs.get("dataset.json") if "dataset" in side.made else None for side in (a, b)]
    if digests[0] == digests[1]:
        return []
    return None if a.images is None or b.images is None else list(_images(a.images, b.images, {**a.names, **b.names}))


def _images(
    a: Mapping[str, Sequence[Image]], b: Mapping[str, Sequence[Image]], names: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    for digest in sorted({*a, *b}, key=lambda digest: (names.get(digest, ""), digest)):
        was, now = sorted(a.get(digest, [])), sorted(b.get(digest, []))
        if was != now:
            change = "added" if not was else "removed" if not now else "changed"
            yield {"image": names.get(digest, f"image {digest[:8]}"), "change": change, "a": was, "b": now}


# artifacts


def _artifacts(a: Lines, b: Lines) -> Iterator[dict[str, Any]]:
    """Each output that differs, in the order of the stages. `same_key`: another machine's bytes, by equal settings."""
    for job in sorted({*a, *b}, key=lambda job: (STAGES.index(job.partition("@")[0]), job)):
        lines = [side.get(job) for side in (a, b)]
        outputs = [line.outputs if line else {} for line in lines]
        for role in sorted({*outputs[0], *outputs[1]}):
            one, other = (found.get(role) for found in outputs)
            if one != other:
                shown = [{"digest": of.digest, "size": of.size} if of else None for of in (one, other)]
                same_key = bool(lines[0] and lines[1] and lines[0].key == lines[1].key)
                yield {"job": job, "role": role, "a": shown[0], "b": shown[1], "same_key": same_key}


# what is said


def _plain(value: Any) -> str:
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def _of_image(row: Mapping[str, Any]) -> str:
    def said(uses: Sequence[Image]) -> str:
        return ", ".join(
            " ".join([_plain(caption), *([f"× {repeats}"] if repeats != 1 else []), *own])
            for caption, repeats, *own in uses
        )

    if row["change"] == "changed":
        return f"{said(row['a'])} -> {said(row['b'])}"
    return f"{row['change']}, {said(row['a'] or row['b'])}"


def _of_artifact(row: Mapping[str, Any]) -> str:
    if row["a"] is None or row["b"] is None:
        return f"only in {'A' if row['a'] else 'B'}, {megabytes((row['a'] or row['b'])['size'])}"
    one, other = (f"{megabytes(row[side]['size'])} {row[side]['digest'][:8]}" for side in "ab")
    return f"{one} -> {other}" + (" (same key, another build)" if row["same_key"] else "")
