"""Find what nothing refers to in the store, and free it: records before the blobs that they name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabuild.files import sync_folder
from lorabuild.stages import STAGES
from lorabuild.store import Record, Store
from lorabuild.upkeep.roots import Roots

KINDS = ("records", "blobs", "pieces", "scratch", "logs")  # in the order in which they are freed
CHEAP = ("resize", "chop")  # stages that [store] max_gb is for: made again in a moment
SHARED = ("base", "norms")  # stages of no project: kept while their version is the present one
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Item:
    """A file, or a folder of scratch, that lies in .lorabuild. `name` is a key or digest."""

    name: str
    path: Path
    bytes: int
    modified: float  # seconds since 1970


@dataclass(frozen=True)
class Stock:
    """All that lies in .lorabuild and that gc may free, by kind; and the records, by key."""

    items: Mapping[str, Sequence[Item]]
    records: Mapping[str, Record]


def take_stock(hidden: Path, store: Store) -> Stock:
    """Look at everything below .lorabuild that a build makes."""
    files = list(_files(store.root / "record"))
    items = {
        "records": [Item(item.name.removesuffix(".json").replace(".", "/"), *_rest(item)) for item in files],
        "blobs": list(_files(store.root / "blob")),
        "pieces": list(_files(store.pieces)),
        "scratch": list(_scratch(hidden / "scratch")),
        "logs": [item for item in _files(hidden / "logs", depth=0) if item.name.endswith(".log")],
    }
    records = {item.name: record for item in items["records"] if (record := store.record(item.name))}
    return Stock(items, records)


def garbage(
    stock: Stock, roots: Roots, days: float, now: float, max_bytes: float | None = None
) -> dict[str, list[Item]]:
    """What nothing refers to, by kind.

    Whatever is younger than `days` stays, but of what cheap stages made only as much as `max_bytes` holds.
    """
    born = now - days * DAY_SECONDS
    young = {item.name for item in stock.items["records"] if item.modified >= born}
    needed = _with_their_makers(_rooted(stock, roots), stock)
    kept = needed | _with_their_makers(young - _beyond(stock, young - needed, needed, max_bytes), stock)
    blobs = _blobs(stock, kept) | roots.digests
    pieces = {piece for key in kept & stock.records.keys() for piece in stock.records[key].pieces}
    crowded_out = _blobs(stock, young - kept)

    def unwanted(kind: str, wanted: Collection[str], also: Collection[str] = ()) -> list[Item]:
        found = (item for item in stock.items[kind] if item.name not in wanted)
        return [item for item in found if item.modified < born or item.name in also]

    return {
        "records": [item for item in stock.items["records"] if item.name not in kept],
        "blobs": unwanted("blobs", blobs, crowded_out),
        "pieces": unwanted("pieces", pieces),
        "scratch": unwanted("scratch", roots.keys),
        "logs": unwanted("logs", ()),
    }


def free(found: Mapping[str, Sequence[Item]]) -> Iterator[Item]:
    """Remove what `garbage` found; each item as soon as it is gone. Raises OSError.

    Records go first, and are gone for good before the first blob: a kill at any moment leaves no record that names a
    missing blob.
    """
    for kind in KINDS:
        for item in found[kind]:
            _remove(item.path)
            yield item
        if kind == "records":
            for folder in sorted({item.path.parent for item in found[kind]}):
                sync_folder(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    else:
        path.unlink(missing_ok=True)


# which records stay


def _rooted(stock: Stock, roots: Roots) -> set[str]:
    kept = {key for key in stock.records if key in roots.keys or key.partition("/")[0] in roots.pinned}
    kept |= {key for key, record in stock.records.items() if _present_base(record)}
    return kept | _after_other_bytes(stock, roots)


def _present_base(record: Record) -> bool:
    return record.stage in SHARED and record.version == STAGES[record.stage].version


def _after_other_bytes(stock: Stock, roots: Roots) -> set[str]:
    """What was made here from other bytes than a lock has under the same key: the lock's later keys are not ours."""
    by_input: dict[str, list[str]] = {}
    for key, record in stock.records.items():
        for digest in record.inputs.values():
            by_input.setdefault(digest, []).append(key)
    found: set[str] = set()
    ours = (
        (stock.records[key].outputs.get(role), theirs) for key, role, theirs in roots.locked if key in stock.records
    )
    digests = [one.digest for one, theirs in ours if one and one.digest != theirs]
    while digests:
        for key in by_input.get(digests.pop(), ()):
            if key not in found:
                found.add(key)
                digests += [one.digest for one in stock.records[key].outputs.values()]
    return found


def _with_their_makers(keys: Iterable[str], stock: Stock) -> set[str]:
    """These records, and those that made what they were made of: nothing that is kept would have to be trained again."""
    makers: dict[str, set[str]] = {}
    for key, record in stock.records.items():
        for one in record.outputs.values():
            makers.setdefault(one.digest, set()).add(key)
    found: set[str] = set()
    ahead = list(keys)
    while ahead:
        key = ahead.pop()
        if key not in found:
            found.add(key)
            if key in stock.records:
                ahead += [maker for digest in stock.records[key].inputs.values() for maker in makers.get(digest, ())]
    return found


def _beyond(stock: Stock, young: Collection[str], needed: Collection[str], max_bytes: float | None) -> set[str]:
    """The records of cheap stages that are kept for their youth alone and for which there is no room, oldest first."""
    if max_bytes is None:
        return set()
    cheap = {key: _bytes(record) for key, record in stock.records.items() if record.stage in CHEAP}
    used = sum(cheap[key] for key in cheap if key in needed)
    found = set()
    for item in sorted(stock.items["records"], key=lambda item: item.modified, reverse=True):
        if item.name in cheap and item.name in young:
            used += cheap[item.name]
            if used > max_bytes:
                found.add(item.name)
    return found


def _blobs(stock: Stock, keys: Collection[str]) -> set[str]:
    return {one.digest for key in keys if key in stock.records for one in stock.records[key].outputs.values()}


def _bytes(record: Record) -> int:
    return sum(one.size for one in record.outputs.values())


# what lies there


def _files(folder: Path, depth: int = 1) -> Iterator[Item]:
    """The files of a folder, or of its folders: `blob/ab/<digest>`."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if depth and entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), depth - 1)
        elif not depth and entry.is_file(follow_symlinks=False):
            stat = entry.stat(follow_symlinks=False)
            yield Item(entry.name, Path(entry.path), stat.st_size, stat.st_mtime)


def _rest(item: Item) -> tuple[Path, int, float]:
    return item.path, item.bytes, item.modified


def _scratch(folder: Path) -> Iterator[Item]:
    """The folder of each key: as young as the youngest file in it."""
    for one in sorted(folder.glob("*")):
        if one.is_dir() and not one.is_symlink():
            files = [(path, path.lstat()) for path in (one, *one.rglob("*"))]
            size = sum(stat.st_size for path, stat in files if path.is_file())
            yield Item(one.name, one, size, max(stat.st_mtime for _, stat in files))
