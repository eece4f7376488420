"""The data set as it is trained: buckets, tags, lengths of captions, duplicates, and what `check` found."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lorabuild.codes import CODES
from lorabuild.report.files import ProjectFiles

TITLE = "Data"
MOST_TAGS = 200
MOST_CAPTIONS = 5  # that are quoted for a duplicate
MOST_DUPLICATES = 20
MOST_FINDINGS = 50  # of a code
MOST_BINS = 60  # of a histogram: a phone has room for them
CHUNK = 75  # tokens that CLIP reads at once


def data(files: ProjectFiles) -> dict[str, Any] | None:
    """Tables of dataset.json, and of the last `lorabuild check`. None where there is neither."""
    path, checked = files.path("dataset"), files.checked
    if path is None and not checked:
        return None
    rows: list[dict[str, Any]] = []
    settings: Mapping[str, Any] = files.settings["dataset"] or {}
    if path is not None:
        found = json.loads(path.read_bytes())
        rows, settings = found["images"], found["settings"]
    tags = tag_counts(rows, settings.get("caption_separator", ","))
    same = duplicates(rows)
    return {
        "images": len(rows),
        "samples": sum(row["repeats"] for row in rows),
        "empty": sum(not row["caption"].strip() for row in rows),
        "buckets": buckets(rows),
        "tags": tags[:MOST_TAGS],
        "other_tags": max(0, len(tags) - MOST_TAGS),
        "lengths": lengths(checked["tokens"], settings.get("max_token_length", CHUNK)) if checked else None,
        "duplicates": same[:MOST_DUPLICATES],
        "other_duplicates": max(0, len(same) - MOST_DUPLICATES),
        "checked": checked and {"when": checked["when"], "codes": by_code(checked["findings"])},
    }


def buckets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a bucket, by size. `crop_loss` is the largest share of an image's pixels that is cut off, `scale` the largest
    factor that one is enlarged by (below 1: all are shrunk)."""
    members: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        members[tuple(row["bucket"])].append(row)
    most = max((len(images) for images in members.values()), default=1)
    return [
        {
            "size": f"{width} × {height}",
            "images": len(images),
            "samples": sum(image["repeats"] for image in images),
            "share": len(images) / most,
            "crop_loss": max(crop_loss(image) for image in images),
            "scale": max(scale(image) for image in images),
        }
        for (width, height), images in sorted(members.items())
    ]


def crop_loss(row: Mapping[str, Any]) -> float:
    """The share of the resized image that the crop cuts off."""
    (width, height), (wide, high) = row["bucket"], row["resized"]
    return max(0.0, 1 - width * height / (wide * high))


def scale(row: Mapping[str, Any]) -> float:
    """The larger of the factors by which the two sides are scaled."""
    return max(new / old for new, old in zip(row["resized"], row["size"], strict=True))


def tag_counts(rows: Sequence[Mapping[str, Any]], separator: str) -> list[dict[str, Any]]:
    """Tags with the number of images that have them, the most frequent first. `share` is of all images."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update({tag.strip() for tag in row["caption"].split(separator)} - {""})
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"tag": tag, "count": count, "share": count / len(rows)} for tag, count in found]


def lengths(tokens: Sequence[int], limit: int) -> dict[str, Any] | None:
    """A histogram of caption lengths in tokens, in bins of five, or of more where some are very long. `over` is how many are above `limit`."""
    if not tokens:
        return None
    longest = max(*tokens, limit)
    width = 5 * (longest // (5 * MOST_BINS) + 1)
    last = longest // width
    counts = Counter(count // width for count in tokens)
    most = max(counts.values())
    bins = [
        {"low": place * width, "high": place * width + width - 1, "count": counts[place], "share": counts[place] / most}
        for place in range(last + 1)
    ]
    return {
        "bins": bins,
        "limit": limit,
        "line": limit / ((last + 1) * width),
        "over": sum(count > limit for count in tokens),
        "longest": max(tokens),
        "middle": sorted(tokens)[len(tokens) // 2],
    }


def duplicates(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Images that stand more than once in the data set, with equal pixels."""
    by_digest: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_digest[row["digest"]].append(row)
    return [
        {
            "size": " × ".join(map(str, same[0]["size"])),
            "count": len(same),
            "captions": [one["caption"] for one in same[:MOST_CAPTIONS]],
        }
        for same in by_digest.values()
        if len(same) > 1
    ]


def by_code(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Findings under their codes, with what `lorabuild explain` says of each."""
    members: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in findings:
        members[one["code"]].append(one)
    return [
        {
            "code": code,
            "level": max((one["level"] for one in found), key=("off", "warn", "error").index),
            "title": CODES[code].title if code in CODES else "",
            "text": CODES[code].text if code in CODES else "",
            "findings": [
                {"place": f"{one['file']}:{one['line']}" if one.get("line") else one["file"], "message": one["message"]}
                for one in found[:MOST_FINDINGS]
            ],
            "count": len(found),
        }
        for code, found in sorted(members.items())
    ]
