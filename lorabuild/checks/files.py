"""Look into the image folders of a project: pictures, captions, and what is neither."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorabuild.data.captions import read_caption
from lorabuild.data.images import EXTENSIONS, caption_name, caption_path, is_folder
from lorabuild.errors import JobError
from lorabuild.findings import Finding, found, one_line
from lorabuild.hashing import read_file
from lorabuild.inputs import named_subsets
from lorabuild.stage import Subset

# Endings of pictures that are not read: who has them in a data set expects otherwise.
OTHER_PICTURES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".jp2", ".psd", ".svg", ".tga", ".ico")


@dataclass(frozen=True)
class Entry:
    """An image of a subset. `caption` is None where no file can be read; `text` is what stands in it, else the folder's
    class tokens, or nothing. `settings` are those of its data set, as its folder has them."""

    path: Path
    shown: str
    subset: Subset
    settings: Mapping[str, Any]
    caption: str | None = None  # what messages call the caption file
    text: str = ""


@dataclass
class Folder:
    """What was found in the folder of a subset."""

    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Named:
    """Where a folder is named: the key, and the file and line that it stands in."""

    key: str
    file: str
    line: int

    def wrong(self, said: str) -> Finding:
        return found("LB030", self.file, f"{self.key}: {said}", self.line)


def look_into(subset: Subset, settings: Mapping[str, Any], place: Named) -> Folder:
    """The images of a folder with their captions; of a folder of folders `10_ember`, those of all of them.

    `settings` are those of the data set, `place` is where the folder is named.
    """
    result = Folder()
    if subset.named:
        try:
            inner = named_subsets(subset)
        except JobError as error:
            return Folder([], [place.wrong(str(error))])
        for one in inner:
            folder = look_into(one, settings, place)
            result.entries += folder.entries
            result.findings += folder.findings
        return result
    names, folders, said = _listed(subset.folder)
    if said:
        result.findings.append(place.wrong(f"{subset.shown}: {said}"))
        return result
    own = {**settings, **dict(subset.settings)}
    images = [name for name in names if not name.startswith(".") and name.lower().endswith(EXTENSIONS)]
    for name in images:
        entry = Entry(subset.folder / name, f"{subset.shown}/{name}", subset, own, text=own.get("class_tokens", ""))
        result.entries.append(_with_caption(entry, names, result.findings))
    if not images:
        kinds = ", ".join(extension.removeprefix(".") for extension in EXTENSIONS)
        said = f"{subset.shown}: no images ({kinds}) in this folder; folders inside it are not searched"
        result.findings.append(place.wrong(said))
    result.findings += _left_over(subset, names, images)
    result.findings += _shared(subset, images)
    result.findings += (
        found("LB040", f"{subset.shown}/{name}", "is a folder, whatever its name says: it is no part of the data set")
        for name in folders
        if not name.startswith(".") and name.lower().endswith(EXTENSIONS)
    )
    return result


def _listed(folder: Path) -> tuple[list[str], list[str], str]:
    """(names of files, of folders, what is wrong with the folder)."""
    try:
        with os.scandir(folder) as entries:
            both = sorted((entry.name, is_folder(entry)) for entry in entries)
    except FileNotFoundError:
        return [], [], "no such folder"
    except NotADirectoryError:
        return [], [], "not a folder"
    except OSError as error:
        return [], [], error.strerror or str(error)
    return [name for name, inner in both if not inner], [name for name, inner in both if inner], ""


def _with_caption(entry: Entry, names: Sequence[str], findings: list[Finding]) -> Entry:
    path = caption_path(entry.path, entry.subset.caption_extension)
    shown = f"{entry.subset.shown}/{path.name}"
    every_line = entry.settings.get("enable_wildcard", False)
    if not os.path.lexists(path):  # a link that leads nowhere is told of: a caption is meant
        if entry.text:  # class tokens
            return entry
        findings.append(found("LB051", entry.shown, f"no caption ({one_line(path.name)})"))
        return entry
    try:
        data = read_file(path)
        text = read_caption(data, shown, every_line)
    except JobError as error:
        findings.append(found("LB050", shown, str(error).removeprefix(f"{shown}: "), 1))
        return entry
    except OSError as error:
        findings.append(found("LB050", shown, error.strerror or str(error)))
        return entry
    if not every_line and any(line.strip() for line in data.decode().splitlines()[1:]):
        findings.append(found("LB057", shown, "further lines are not read: a caption is one line", 2))
    return replace(entry, caption=shown, text=text)


def _shared(subset: Subset, images: Sequence[str]) -> Iterator[Finding]:
    """Images that differ in their endings alone: there is one caption for all of them."""
    first: dict[str, str] = {}
    for name in images:
        caption = caption_name(name, subset.caption_extension)
        if (other := first.setdefault(caption, name)) != name:
            said = f"has its caption ({one_line(caption)}) in common with {one_line(other)}"
            yield found("LB058", f"{subset.shown}/{name}", said)


def _left_over(subset: Subset, names: Sequence[str], images: Sequence[str]) -> Iterator[Finding]:
    """Captions without an image, and pictures of other formats."""
    used = {caption_name(name, subset.caption_extension) for name in images}
    for name in names:
        shown = f"{subset.shown}/{name}"
        if name.startswith("."):
            continue
        if name.lower().endswith(OTHER_PICTURES):
            yield found("LB040", shown, f"{Path(name).suffix} is not read: it is no part of the data set")
            used.add(caption_name(name, subset.caption_extension))
        elif name.rstrip(". ") != name and name.rstrip(". ").lower().endswith(EXTENSIONS):
            yield found("LB040", shown, "its name ends in a dot or a space: it is no part of the data set")
    for name in names:
        if name.endswith(subset.caption_extension) and name not in used and not name.startswith("."):
            yield found("LB056", f"{subset.shown}/{name}", "a caption without an image")
