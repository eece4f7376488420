"""Whatever a user writes, loading ends with settings or with lines that name a file and a line: never with a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as some
from manifest_world import GOOD

from lorabuild.errors import ConfigError
from lorabuild.hashing import canonical_json
from lorabuild.manifest import load
from lorabuild.manifest.schema import Manifest, SharedFile, walk

# Tables and keys that the schema has, some that it has not, and values of every kind that TOML knows.
KEYS = sorted({path.rpartition(".")[2] for path, _ in [*walk(Manifest), *walk(SharedFile)]} - {"*"})
NAMES = some.sampled_from([*KEYS, "size", "source", "seeed", "TE", "OUT01", "mini", "my key", ""]) | some.text(
    max_size=3
)
SCALARS = some.one_of(
    some.integers(-3, 9),
    some.integers(),
    some.floats(),
    some.booleans(),
    some.dates(),
    some.sampled_from(
        ["tiny", "last", "TE", "OUT*", "!MID01", "AdamW", "cosine", "1," * 20 + "1", ".txt", "locon", ""]
    ),
    some.text(max_size=4),
)
VALUES = some.recursive(
    SCALARS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
TABLES = some.dictionaries(NAMES, VALUES, max_size=5)
HEADERS = some.sampled_from(
    [
        "project",
        "dataset",
        "recipe",
        "recipe.network_args",
        "resize",
        "chop",
        "variants.mini.resize",
        "variants.x.chop",
        "bases.tiny",
        "bases.b",
        "slots",
        "build",
        "other",
    ]
)
PATHS = some.sampled_from([path.replace("*", "mini") for path, _ in walk(Manifest)])


def spelled(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {spelled(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(spelled, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value).lower()


def loads_or_tells(manifest: bytes, shared: bytes = b"", recipe: bytes = b"") -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name, content in (("projects/ember/lora", manifest), ("lorabuild", shared), ("recipes/low", recipe)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / f"{name}.toml").write_bytes(content)
        try:
            repository = load(root)
        except ConfigError as error:
            assert error.problems
            for problem in error.problems:
                assert problem.line >= 1 and problem.message
                assert problem.line <= max(1, len((root / problem.file).read_bytes().split(b"\n")))
                assert "\n" not in str(problem)
                assert "Input should" not in problem.message  # pydantic's own words
        else:
            for project in repository.projects.values():
                canonical_json([project.settings, project.variants])


@given(some.lists(some.tuples(HEADERS, TABLES), max_size=5, unique_by=lambda item: item[0]), TABLES)
@limits(max_examples=100, deadline=None)
def test_any_tables_load_or_are_explained(tables: list[tuple[str, dict]], recipe: dict):
    text = "".join(
        f"[{name}]\n" + "".join(f"{json.dumps(key)} = {spelled(value)}\n" for key, value in table.items())
        for name, table in tables
    )
    low = "[recipe]\n" + "".join(f"{json.dumps(key)} = {spelled(value)}\n" for key, value in recipe.items())
    loads_or_tells(text.encode(), text.encode())
    loads_or_tells(b'extends = "low"\n' + text.encode(), b"", low.encode())


@given(PATHS, VALUES)
@limits(max_examples=300, deadline=None)
def test_any_value_of_any_key_loads_or_is_explained(path: str, value: object):
    rest = {"project.base": '"tiny"', "dataset.subset": '[{ image_dir = "images" }]', "resize.thr": "-3.5"}
    lines = [f"{key} = {text}\n" for key, text in rest.items() if not key.startswith(path)]
    loads_or_tells("".join([f"{path} = {spelled(value)}\n", *lines]).encode())


@given(some.integers(0, len(GOOD)), some.binary(max_size=6))
@limits(max_examples=100, deadline=None)
def test_any_bytes_load_or_are_explained(place: int, junk: bytes):
    good = GOOD.encode()
    loads_or_tells(good[:place] + junk + good[place:], junk)
