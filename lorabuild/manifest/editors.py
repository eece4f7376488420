"""JSON Schemas of lora.toml, recipes and lorabuild.toml, for editors: made of the tables that manifests are read by.

What a schema cannot say (a sum that must come out, a base that exists, arguments that go with an algorithm) stays with
`lorabuild check`. Nothing that lorabuild takes is an error in a schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from lorabuild.codes import CODES, FIXED
from lorabuild.manifest.blocks import NO_LAYERS
from lorabuild.manifest.matrix import sweepable
from lorabuild.manifest.merge import EXCLUSIVE
from lorabuild.manifest.values import REMOTES
from lorabuild.names import BLOCKS
from lorabuild.training.optimizers import OPTIMIZERS, TORCH
from lorabuild.training.schedules import SCHEDULES

Schema = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"  # what editors' TOML servers read; of 2020-12 they know parts

NAME: Schema = {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"}
RECIPE: Schema = {"type": "string", "pattern": r"^\w[\w.-]*$"}
BLOCK: Schema = {"enum": [*BLOCKS, "TE"]}
GLOB: Schema = {"type": "string", "pattern": r"^[^*?\[]*[*?\[]"}
PART: Schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
STEPS: Schema = {"anyOf": [PART, {"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d.*%\s*$"}]}
RATE: Schema = {"type": "number", "minimum": 0}
PAIRS: Schema = {"type": "array", "items": {"type": "string", "pattern": "="}}
ARGUMENTS: Schema = {"anyOf": [{"type": "object"}, PAIRS]}
NEGATED: Schema = {"type": "string", "pattern": f"^!({'|'.join(BLOCKS)}|TE|.*[*?\\[].*)$"}


def _any_case(names: Sequence[str], others: str) -> Schema:
    """Names to choose from, which editors offer; sd-scripts reads them without regard to case."""
    spelled = "|".join("".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else re.escape(c) for c in n) for n in names)
    return {"anyOf": [{"enum": [*names]}, {"type": "string", "pattern": f"^({spelled}{others})$"}]}


def _or(*more: Schema) -> Callable[[Schema], Schema]:
    """What the schema of a key says, or one of these spellings."""
    return lambda said: {"anyOf": [said, *more]}


def _be(schema: Schema) -> Callable[[Schema], Schema]:
    """This, where a function reads the value, of which pydantic's schema knows nothing."""
    return lambda said: schema


def _names(schema: Schema) -> Callable[[Schema], Schema]:
    """A table whose keys are such names."""
    return lambda said: said | {"propertyNames": schema}


NUMBERS: Schema = {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s*(,\s*[0-9.eE+-]+\s*){22}$"}
_per_block = _or(NUMBERS, {"type": "array", "items": {"type": "number"}, "minItems": 23, "maxItems": 23})


def _blocks(said: Schema) -> Schema:
    return _per_block(
        said | {"propertyNames": {"anyOf": [{"enum": [one for one in BLOCK["enum"] if one != NO_LAYERS]}, GLOB]}}
    )


SWEPT = {"recipe": "RecipeTable", "recipe.network_args": "NetworkArgs", "resize": "ResizeTable", "chop": "ChopTable"}


def _matrix(said: Schema) -> Schema:
    """Lists of what the keys of other tables are, by their whole names and by short ones."""

    def values(key: str) -> Schema:
        table, _, name = key.rpartition(".")
        one = {"$ref": f"#/definitions/{SWEPT[table]}/properties/{name}"}
        return {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}

    names = sweepable()
    tables = {table: _closed({_last(key): values(key) for key in names if _table(key) == table}) for table in SWEPT}
    arguments = tables.pop("recipe.network_args")
    inner = tables["recipe"]["properties"]
    inner["network_args"] = {"anyOf": [*filter(None, [inner.get("network_args")]), arguments]}
    free = {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}}
    for key in ("optimizer_args", "lr_scheduler_args"):
        inner[key] = {"anyOf": [inner[key], free]}
    short = {_last(key): values(key) for key in names if [*map(_last, names)].count(_last(key)) == 1}
    short |= {key: inner[key] for key in ("optimizer_args", "lr_scheduler_args")}
    whole = {"patternProperties": {r"^(recipe|resize|chop|network_args)\.": {"type": "array", "minItems": 1}}}
    return _closed(short | tables | {"network_args": inner["network_args"]}) | whole


def _closed(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _table(key: str) -> str:
    return key.rpartition(".")[0]


FOLDERS = "s3|gs|ssh|sftp"
assert set(FOLDERS.split("|")) | {"file"} == set(REMOTES)
REMOTE: Schema = {"type": "string", "pattern": f"^(|file:///+[^/].*|({FOLDERS})://+([^/:@]+@)?[^/@]+(/.*)?)$"}

# "Table.key", or "*.key" in all tables -> what its schema becomes
SPELLINGS: dict[str, Callable[[Schema], Schema]] = {
    "DatasetTable.resolution": _or({"type": "integer", "minimum": 8, "maximum": 16384}),
    "*.resize_interpolation": _or({"enum": ["linear", "cubic", "lanczos4"]}),
    "*.random_crop": _be({"const": False}),
    "*.color_aug": _be({"const": False}),
    "*.token_warmup_step": _be(STEPS),
    "*.lr_warmup_steps": _be(STEPS),
    "*.lr_decay_steps": _be(STEPS),
    "*.text_encoder_lr": _be({"anyOf": [RATE, {"type": "array", "items": RATE, "minItems": 2, "maxItems": 2}]}),
    "*.lr_scheduler": _be(_any_case([*SCHEDULES], "|adafactor:.*")),
    "*.lr_scheduler_args": _be(ARGUMENTS),
    "RecipeTable.optimizer_type": _be(_any_case([*OPTIMIZERS, *TORCH], r"||.*\..*")),
    "RecipeTable.optimizer_args": _be(ARGUMENTS),
    "RecipeTable.network_args": _or(PAIRS),
    "RecipeTable.save_precision": _or({"const": "float"}),
    "NetworkArgs.algo": _or({"const": "lora"}),
    "NetworkArgs.block_dims": _blocks,
    "NetworkArgs.block_alphas": _blocks,
    "NetworkArgs.conv_block_dims": _blocks,
    "NetworkArgs.conv_block_alphas": _blocks,
    "ProjectTable.tags": _or({"type": "string"}),
    "ResizeTable.step": _be({"anyOf": [{"const": "last"}, {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}]}),
    "ChopTable.keep": _be({"type": "array", "items": {"anyOf": [BLOCK, GLOB, NEGATED]}}),
    "ChopTable.weights": _names(BLOCK),
    "CheckTable.levels": _names(
        {"enum": [code for name in CODES if name not in FIXED for code in (name, name.lower())]}
    ),
    "VariantTable.recipe": _be({"$ref": "#/definitions/RecipeTable"}),
    "VariantTable.resize": _be({"$ref": "#/definitions/ResizeTable"}),
    "VariantTable.chop": _be({"$ref": "#/definitions/ChopTable"}),
    "ResizeTable.sv_fro": lambda said: said | {"exclusiveMinimum": 0, "maximum": 1},
    "ResizeTable.sv_cumulative": lambda said: said | {"exclusiveMinimum": 0, "maximum": 1},
    "RecipeTable.min_timestep": lambda said: said | {"maximum": 999},
    "*.caption_extension": lambda said: said | {"pattern": r"^[^/\\]*[^./\\][^/\\]*$"},
    "Manifest.extends": _be({"anyOf": [RECIPE, {"type": "array", "items": RECIPE}]}),
    "StoreTable.remote": _be(REMOTE),
    "Manifest.variants": _names(NAME),
    "Manifest.matrix": _matrix,
    "SharedFile.bases": _names(NAME),
}
TABLES = {"resize": "ResizeTable", "chop": "ChopTable", "samples": "SamplesTable"}  # of EXCLUSIVE that always hold


def manifest_schema() -> Schema:
    """Of projects/<name>/lora.toml: whole by itself, or with `extends` of recipes that say the rest."""
    found = recipe_schema() | {"title": "lora.toml: a LoRA"}
    base = {"properties": {"project": {"required": ["base"]}}, "required": ["project"]}
    source = {"properties": {"project": {"required": ["source"]}}}
    images = {"properties": {"dataset": {"anyOf": [{"required": ["subset"]}, {"required": ["train_data_dir"]}]}}}
    trained = {"allOf": [images, {"required": ["dataset"]}]}
    return found | {"anyOf": [{"required": ["extends"]}, {"allOf": [base, {"anyOf": [source, trained]}]}]}


def recipe_schema() -> Schema:
    """Of recipes/<name>.toml: any part of a manifest."""
    from lorabuild.manifest.schema import Manifest

    found = _schema(Manifest, "recipes/*.toml: a part of a manifest that others extend")
    del found["required"]
    found["definitions"]["ProjectTable"].pop("required")
    for table, name in TABLES.items():
        groups = EXCLUSIVE[table]
        both = [{"required": [one, other]} for group in groups for one in group for other in group if one < other]
        found["definitions"][name]["not"] = {"anyOf": both}
    return found


def shared_schema() -> Schema:
    """Of lorabuild.toml and lorabuild.local.toml."""
    from lorabuild.manifest.schema import SharedFile

    found = _schema(SharedFile, "lorabuild.toml: what all projects share")
    found["definitions"]["BaseTable"]["not"] = {"required": ["builtin", "file"]}
    return found


SCHEMAS: dict[str, Callable[[], Schema]] = {
    "lora": manifest_schema,
    "recipe": recipe_schema,
    "lorabuild": shared_schema,
}
# Which files each is of, as editors find them
FILES = {
    "lora": ["projects/**/lora.toml"],
    "recipe": ["recipes/*.toml"],
    "lorabuild": ["lorabuild.toml", "lorabuild.local.toml"],
}


def text(schema: Schema) -> str:
    """A schema as its file has it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def taplo(folder: str) -> str:
    """`.taplo.toml`: which schema of `folder` is for which files; read by Even Better TOML and taplo."""
    rules = [
        f'[[rule]]\ninclude = {str(FILES[name]).replace(chr(39), chr(34))}\nschema = {{ path = "{folder}/{name}.schema.json" }}'
        for name in SCHEMAS
    ]
    return "\n\n".join(["# Schemas for editors: `lorabuild schema -o DIR` writes them anew.", *rules]) + "\n"


def _schema(model: Any, title: str) -> Schema:
    said = model.model_json_schema(ref_template="#/definitions/{model}")
    tables = {model.__name__: said, **said.pop("$defs", {})}
    for name, table in tables.items():
        table.pop("title", None)
        table["properties"] = {key: _key(name, key, one) for key, one in table["properties"].items()}
    return (
        {"$schema": DRAFT, "title": title} | said | {"definitions": {n: t for n, t in tables.items() if t is not said}}
    )


def _key(table: str, key: str, said: Schema) -> Schema:
    """One key: TOML has no null, a description stands beside a reference, and other spellings count."""
    beside = {name: said[name] for name in ("description", "default") if said.get(name) is not None}
    rest = {name: value for name, value in said.items() if name not in ("title", "description", "default")}
    options = [one for one in rest.get("anyOf", ()) if one != {"type": "null"}]
    if options:
        rest = options[0] if len(options) == 1 else {"anyOf": options}
    change = SPELLINGS.get(f"{table}.{key}") or SPELLINGS.get(f"*.{key}")
    rest = change(rest) if change else rest
    return beside | ({"allOf": [rest]} if "$ref" in rest else rest)
