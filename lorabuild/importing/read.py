"""Read whatever kind of file a user has: a script, a config or a data set file of sd-scripts, or a LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError
from lorabuild.importing.base import Base, found_base
from lorabuild.importing.commandline import tell_script
from lorabuild.importing.config import is_of_datasets, parsed_toml, tell_config, tell_datasets
from lorabuild.importing.draft import Draft
from lorabuild.importing.told import Told
from lorabuild.importing.translate import settled, translated

MOST_BYTES = 16 * 2**20  # of a text: who names a model by mistake is not kept waiting


def imported(
    sources: Sequence[tuple[str, str]], folder: Path, known: Mapping[str, Any], base: str | None, manifest: Path | None
) -> Draft:
    """The manifest of texts, (name, text) each.

    `known` are the bases of the repository, `base` the one that the user wants, `manifest` the folder it will be in.
    Raises JobError and ConfigError for what cannot be read.
    """
    told = Told(folder)
    tables: dict[str, dict[str, Any]] = {}
    for file, text in sources:
        if _is_json(text):
            said = 'JSON, as kohya_ss\'s interface keeps its settings: import what its "Print training command" prints'
            raise JobError(f"{file}: {said}")
        if is_toml(file, text):
            tables[file] = parsed_toml(text, file)
        else:
            tell_script(told, text, file)
    _named_file(told, tables, "config_file", of_datasets=False)
    scripts = told.trains
    for file, table in tables.items():
        if not is_of_datasets(table):
            tell_config(told, table, file, under=scripts)
    _named_file(told, tables, "dataset_config", of_datasets=True)
    for file, table in tables.items():
        if is_of_datasets(table):
            tell_datasets(told, table, file)
    told.trains = scripts or bool(told.arguments)
    if not (told.trains or told.datasets is not None or told.resize or told.chop):
        names = ", ".join(file for file, _ in sources)
        raise JobError(f"{names}: no command of sd-scripts, no config and no data set of it: nothing to import")
    return settled(translated(told, _base(told, known, base), manifest))


def is_toml(file: str, text: str) -> bool:
    """By its name, else by how it looks: of what is read from stdin."""
    if file != "-":
        return file.casefold().endswith(".toml")
    import tomllib

    try:
        return bool(tomllib.loads(text))
    except (ValueError, RecursionError):
        return False


def _is_json(text: str) -> bool:
    import json

    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def read_text(path: Path) -> str:
    """A file's text. Raises JobError for what is none."""
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise JobError(f"{path}: larger than {MOST_BYTES >> 20} MiB: not a text with commands or settings")
    for encoding in ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            raise JobError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from None
    raise AssertionError(path)


def _named_file(told: Told, tables: dict[str, dict[str, Any]], name: str, of_datasets: bool) -> None:
    """Read the file that an argument names, unless the user named one of that kind."""
    given = told.arguments.get(name)
    if not given or any(is_of_datasets(table) == of_datasets for table in tables.values()):
        return
    path = told.folder / given
    path = path if path.suffix == ".toml" else path.with_name(f"{path.name}.toml")  # as sd-scripts does
    if path.is_file():
        tables[given] = parsed_toml(read_text(path), given)
    else:
        told.warnings.append(f"{name}: {given} is not here: name it, too: lorabuild import COMMANDS {path.name}")


def _base(told: Told, known: Mapping[str, Any], wanted: str | None) -> Base | None:
    arguments = told.arguments
    if wanted:
        if wanted not in known:
            told.warnings.append(f"--base {wanted}: not a base of lorabuild.toml yet")
        return Base(wanted)
    if not (file := arguments.get("pretrained_model_name_or_path")):
        return None
    entry: dict[str, Any] = {}
    if arguments.get("v_parameterization"):
        entry["prediction_type"] = "v_prediction"
    if arguments.get("vae"):
        entry["vae"] = arguments["vae"]
    return found_base(file, known, entry)
