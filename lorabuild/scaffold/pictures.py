"""Look at a folder of images: where their captions are, and by which word they begin."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lorabuild.data.captions import read_caption
from lorabuild.data.images import caption_path, list_images, named_folders
from lorabuild.errors import JobError

CAPTIONS = (".txt", ".caption", ".tags")  # the first one counts where there are as many of another
ENOUGH = 1000  # captions are looked at for a guess alone


@dataclass(frozen=True)
class Pictures:
    """What lies in a folder. `named`: in folders 10_ember, as sd-scripts has them."""

    images: int
    captions: int
    extension: str
    first_tag: str  # the commonest one, "" without captions
    with_tag: int
    named: bool
    first: str  # the first image's name, without its ending


def look(folder: Path) -> Pictures:
    """What a folder of images holds. Raises OSError."""
    images = list_images(folder)
    named = [] if images else [path for path, _, _ in named_folders(folder)]
    for one in named:
        images += list_images(one)
    there = {kind: [path for image in images if (path := caption_path(image, kind)).is_file()] for kind in CAPTIONS}
    extension = max(CAPTIONS, key=lambda kind: len(there[kind]))
    captions = there[extension]
    tags = Counter(tag for path in captions[:ENOUGH] if (tag := _first_tag(path)))
    first_tag, with_tag = tags.most_common(1)[0] if tags else ("", 0)
    return Pictures(
        len(images), len(captions), extension, first_tag, with_tag, bool(named), images[0].stem if images else ""
    )


def _first_tag(path: Path) -> str:
    try:
        return read_caption(path.read_bytes(), path.name).partition(",")[0].strip()
    except (JobError, OSError):  # `check` tells of it
        return ""
