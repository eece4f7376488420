"""Write the reference of all manifest keys: `python -m lorabuild.manifest.reference > docs/manifest.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorabuild.manifest.keys import CLASS_OF

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

INTRODUCTION = """\
# Manifest reference

*Generated from the schema: `python -m lorabuild.manifest.reference > docs/manifest.md`.*

Field names are sd-scripts' and resize_lora's own wherever one exists. Unknown keys are errors with a near miss. `extends` names recipes in
`recipes/`; layers merge in order and the manifest comes last: tables key by key, lists replace, and `keep`/`vector` as well as `thr`/`size`
replace each other.

*A change* says what happens when a key is edited: **builds** what depends on it; **saves** decides which snapshots exist; **how** never changes a
byte of the result; **shown** rewrites headers at most.
"""
CHANGE = {"result": "builds", "saved": "saves", "execution": "how", "presentation": "shown"}


def reference() -> str:
    """The page, in Markdown."""
    from lorabuild.manifest.schema import Manifest, SharedFile

    shared = "\n## lorabuild.toml and lorabuild.local.toml\n\nWhat all projects share; the second file is this machine's own."
    pages = [INTRODUCTION, *_sections(Manifest), shared, *_sections(SharedFile)]
    return "\n".join(pages)


def _sections(model: Any) -> Iterator[str]:
    """A heading a table, with a row a key below it."""
    from lorabuild.manifest.schema import inner_table, walk

    fields = dict(walk(model))
    tables = {path: [] for path, field in fields.items() if inner_table(field)}
    for path, field in fields.items():
        if path not in tables:
            tables.setdefault(path.rpartition(".")[0].removesuffix(".*"), []).append(_row(path, field))
    for path, rows in tables.items():
        heading = f"### {path}\n\n{fields[path].description}" if path else "### At the top"
        yield f"\n{heading}" + ("\n\n| key | default | a change | |\n|---|---|---|---|" if rows else "")
        yield from rows


def _row(path: str, field: FieldInfo) -> str:
    key = path.rpartition(".")[2]
    change = CHANGE.get(CLASS_OF.get(path, ""), "")
    return f"| `{key}` | {_default(field)} | {change} | {field.description} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(reference())
