"""The schema is whole: every key has one class, a line for the reference, and a default that its own table accepts."""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args, get_origin

import pytest

from lorabuild.manifest import later, merge, schema
from lorabuild.manifest.keys import CLASS_OF, KEYS
from lorabuild.manifest.schema import Manifest, SharedFile, Table, table_at, walk
from lorabuild.manifest.tables import recipe, shared
from lorabuild.names import BY_DEFAULT, STAGES


def descendants(table: type[Table]) -> set[type[Table]]:
    children = set(table.__subclasses__())
    return children.union(*map(descendants, children))


TABLES = sorted(descendants(Table), key=lambda table: table.__name__)
# What can be set: keys that hold no table of their own. Those of a variant are the keys of its tables.
SETTABLE = {path for path, field in walk(Manifest) if not schema.inner_table(field) and "*" not in path}


def test_every_key_of_the_manifest_is_in_exactly_one_class():
    classes = Counter(
        f"{table}.{key}".removeprefix(".") for table, of in KEYS.items() for keys in of.values() for key in keys.split()
    )
    assert set(classes) == SETTABLE
    assert set(classes.values()) == {1}
    assert set(CLASS_OF.values()) == {"result", "saved", "execution", "presentation"}


@pytest.mark.parametrize("model", [Manifest, SharedFile])
def test_every_key_has_one_line_for_the_reference(model: type[Table]):
    for path, field in walk(model):
        text = field.description or ""
        assert text.strip().endswith(".") and "\n" not in text, path


def test_no_key_is_both_supported_and_not_yet():
    for table in TABLES:
        assert not set(table.model_fields) & set(later.KEYS.get(table.__name__, "").split()), table
    assert set(later.KEYS) <= {table.__name__ for table in TABLES}


def test_no_value_is_both_supported_and_not_yet():
    tables = {table.__name__: table for table in TABLES}
    for where, names in later.VALUES.items():
        table, _, key = where.partition(".")
        supported = {str(option).casefold() for option in literals(tables[table].model_fields[key].annotation)}
        assert supported, where
        assert not supported & set(names.casefold().split()), where


def literals(annotation: object) -> list[object]:
    """The options of every Literal within an annotation."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [option for part in get_args(annotation) for option in literals(part)]


def test_defaults_are_valid_by_their_own_rules():
    for model in (recipe.RecipeTable, shared.SlotsTable, shared.BuildTable):
        written = {key: value for key, value in model().model_dump().items() if value is not None}
        written.pop("lr_scheduler_args", None)  # "constant", the default, refuses any
        assert model.model_validate(written) == model()


def test_the_rules_of_merging_name_real_keys_and_their_defaults():
    for table, rules in merge.ARGUMENTS.items():
        fields = table_at(Manifest, (table,)).model_fields
        for owner, default, arguments in rules:
            assert fields[owner].default == default
            assert arguments in fields
    for table, groups in merge.EXCLUSIVE.items():
        known = table_at(Manifest, (table,))
        for key in (key for group in groups for key in group):
            assert key in known.model_fields or later.later_key(known.__name__, key)
    assert set(schema.VariantTable.model_fields) == set(merge.VARYING)


def test_stages_that_can_be_built_by_default_are_the_stages():
    assert shared.BuildTable().default == list(BY_DEFAULT)
    assert [stage for stage in STAGES if stage not in BY_DEFAULT] == ["samples"]
