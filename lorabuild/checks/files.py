"""Look into the image folders of a project: pictures, captions, and what is neither."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorabuild.captions import read_caption
from lorabuild.errors import JobError
from lorabuild.findings import Finding, found, one_line
from lorabuild.images import EXTENSIONS, caption_path
from lorabuild.stage import Subset

# Endings of pictures that are not read: who has them in a data set expects otherwise.
OTHER_PICTURES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".ico")


@dataclass(frozen=True)
class Entry:
    """An image of a subset. `caption` is None where no file can be read; `text` is what stands in it, else empty."""

    path: Path
    shown: str
    subset: Subset
    caption: str | None = None  # what messages call the caption file
    text: str = ""


@dataclass
class Folder:
    """What was found in the folder of a subset."""

    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def look_into(subset: Subset, manifest: str, line: int) -> Folder:
    """The images of a folder with their captions; `manifest` and `line` are where the folder is named."""
    result = Folder()
    names, said = _listed(subset.folder)
    if said:
        result.findings.append(found("LB030", manifest, f"dataset.subset.image_dir: {subset.shown}: {said}", line))
        return result
    images = [name for name in names if not name.startswith(".") and name.lower().endswith(EXTENSIONS)]
    for name in images:
        entry = Entry(subset.folder / name, f"{subset.shown}/{name}", subset)
        result.entries.append(_with_caption(entry, names, result.findings))
    if not images:
        kinds = ", ".join(extension.removeprefix(".") for extension in EXTENSIONS)
        said = f"no images ({kinds}) in this folder; folders inside it are not searched"
        result.findings.append(found("LB030", manifest, f"dataset.subset.image_dir: {subset.shown}: {said}", line))
    result.findings += _left_over(subset, names, images)
    return result


def _listed(folder: Path) -> tuple[frozenset[str] | list[str], str]:
    """(names of what lies in the folder, but for folders; what is wrong with it)."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not _is_folder(entry)), ""
    except FileNotFoundError:
        return [], "no such folder"
    except NotADirectoryError:
        return [], "not a folder"
    except OSError as error:
        return [], error.strerror or str(error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def _with_caption(entry: Entry, names: Sequence[str], findings: list[Finding]) -> Entry:
    path = caption_path(entry.path, entry.subset.caption_extension)
    shown = f"{entry.subset.shown}/{path.name}"
    if not path.exists():
        findings.append(found("LB051", entry.shown, f"no caption ({one_line(path.name)})"))
        return entry
    try:
        data = path.read_bytes()
        text = read_caption(data, shown)
    except JobError as error:
        findings.append(found("LB050", shown, str(error).removeprefix(f"{shown}: "), 1))
        return entry
    except OSError as error:
        findings.append(found("LB050", shown, error.strerror or str(error)))
        return entry
    if any(line.strip() for line in data.decode().splitlines()[1:]):
        findings.append(found("LB057", shown, "further lines are not read: a caption is one line", 2))
    return Entry(entry.path, entry.shown, entry.subset, shown, text)


def _left_over(subset: Subset, names: Sequence[str], images: Sequence[str]) -> Iterator[Finding]:
    """Captions without an image, and pictures of other formats."""
    used = {caption_path(Path(name), subset.caption_extension).name for name in images}
    for name in names:
        shown = f"{subset.shown}/{name}"
        if name.startswith("."):
            continue
        if name.lower().endswith(OTHER_PICTURES):
            yield found("LB040", shown, f"{Path(name).suffix} is not read: it is no part of the data set")
            used.add(caption_path(Path(name), subset.caption_extension).name)
    for name in names:
        if name.endswith(subset.caption_extension) and name not in used and not name.startswith("."):
            yield found("LB056", f"{subset.shown}/{name}", "a caption without an image")
