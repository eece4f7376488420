"""Find the base that was trained on among those of lorabuild.toml, or say what to write there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lorabuild.tomltext import key_written, written

UNKNOWN = "name-of-the-base"


@dataclass(frozen=True)
class Base:
    """`entry` is what lorabuild.toml needs, {} if nothing."""

    name: str
    entry: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The table for lorabuild.toml."""
        if not self.entry:
            return []
        return [
            f"[bases.{key_written(self.name)}]",
            *(f"{key} = {written(value)}" for key, value in self.entry.items()),
        ]


def found_base(file: str, known: Mapping[str, Mapping[str, Any]], entry: Mapping[str, Any]) -> Base:
    """The base of a file's or a hub's name: a known one whose file or name it is, else a new one with `entry`'s settings."""
    name = file_name(file)
    for base, settings in known.items():
        if settings.get("file") and file_name(settings["file"]) == name:
            return Base(base)
    stem = re.sub(r"\.(safetensors|ckpt)$", "", name, flags=re.IGNORECASE)
    if stem in known:
        return Base(stem)
    short = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_") or "base"
    return Base(short, {"file": file, **entry})


def file_name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name


def known_bases(root: Path | None) -> dict[str, Mapping[str, Any]]:
    """The bases of a repository; of a lorabuild.toml that is wrong, none: other commands say so."""
    import tomllib

    from lorabuild.manifest.repository import BUILTIN_BASES, SHARED_FILES

    found: dict[str, Mapping[str, Any]] = dict(BUILTIN_BASES)
    for name in SHARED_FILES if root else ():
        try:
            bases = tomllib.loads((root / name).read_text("utf-8-sig")).get("bases", {})
            found |= {base: settings for base, settings in bases.items() if isinstance(settings, dict)}
        except (OSError, ValueError, AttributeError):
            continue
    return found
