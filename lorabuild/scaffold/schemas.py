"""The schemas for editors, as a repository has them, and the first line by which a TOML file names its own."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

FOLDER = "schema"


def files() -> dict[str, bytes]:
    """Name -> content of each: `schema/lora.schema.json`. They are made of the manifest's tables, by pydantic."""
    from lorabuild.manifest.editors import SCHEMAS, text

    return {_name(kind): text(make()).encode() for kind, make in SCHEMAS.items()}


def there(kind: str, root: Path) -> bool:
    return (root / _name(kind)).is_file()


def first_line(kind: str, name: str) -> str:
    """`#:schema …` for the file `name` of a repository: where editors with taplo find its schema, seen from the file.

    https://taplo.tamasfe.dev/configuration/directives.html
    """
    up = "../" * (len(PurePosixPath(name).parts) - 1)
    return f"#:schema {up or './'}{_name(kind)}\n"


def _name(kind: str) -> str:
    return f"{FOLDER}/{kind}.schema.json"
