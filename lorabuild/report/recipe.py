"""The resolved recipe: every key with its value, and the file and line that it came from, or that it is a default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorabuild.report.files import ProjectFiles
from lorabuild.tomltext import written

TITLE = "Recipe"
TABLES = ("project", "dataset", "recipe", "resize", "chop", "samples")


def data(files: ProjectFiles) -> dict[str, Any]:
    """Tables of rows (key, value as TOML writes it, file:line or None), and what each variant has otherwise."""
    tables = [(name, list(_rows(files, name, files.settings.get(name)))) for name in TABLES]
    variants = [(name, list(_changed(files, own))) for name, own in files.named.items()]
    return {
        "tables": [(name, rows, sum(row["whence"] is not None for row in rows)) for name, rows in tables if rows],
        "variants": variants,
    }


def _rows(files: ProjectFiles, table: str, values: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """What somebody wrote first, then defaults."""
    rows = [
        {"key": key, "value": told(value), "whence": files.whence.get(f"{table}.{key}")}
        for key, value in (values or {}).items()
    ]
    return iter(sorted(rows, key=lambda row: row["whence"] is None))


def _changed(files: ProjectFiles, own: ProjectFiles) -> Iterator[dict[str, Any]]:
    for table in ("recipe", "resize", "chop"):
        was, now = files.settings.get(table) or {}, own.settings.get(table) or {}
        for key, value in now.items():
            if was.get(key) != value:
                before = told(was[key]) if key in was else None
                spot = own.whence.get(f"{table}.{key}")
                yield {"key": f"{table}.{key}", "value": told(value), "was": before, "whence": spot}


def told(value: Any) -> str:
    """A value as TOML writes it; nothing for what is not set."""
    return "" if value is None else written(value)
