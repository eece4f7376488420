"""Read sd-scripts' TOML files: of arguments, flat or in sections, and of data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorabuild.errors import ConfigError, Problem
from lorabuild.importing.told import Told


def parsed_toml(text: str, file: str) -> dict[str, Any]:
    """Raises ConfigError with the place of the fault."""
    import tomllib

    try:
        return tomllib.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(Problem(file, 0, f"wrong TOML: {error}")) from None


def is_of_datasets(table: Mapping[str, Any]) -> bool:
    return "datasets" in table or set(table) == {"general"}


def tell_config(told: Told, table: Mapping[str, Any], file: str, under: bool = False) -> None:
    """A file of arguments. Sections mean nothing to sd-scripts. `under`: what the command line says goes before it."""
    told.trains = True
    for key, value in table.items():
        inner = value if isinstance(value, Mapping) and key not in _TABLES else {key: value}
        for name, one in inner.items():
            if under and name in told.arguments:
                if one != told.arguments[name]:
                    told.note(name, one, f"in {file}; the command line goes before it")
            else:
                told.tell(name, one, file)


_TABLES = ("network_args", "optimizer_args", "lr_scheduler_args")


def tell_datasets(told: Told, table: Mapping[str, Any], file: str) -> None:
    """A data set TOML: [general], [[datasets]], [[datasets.subsets]]. Raises ConfigError for one that is built otherwise."""
    datasets = table.get("datasets", [])
    general = table.get("general", {})
    if not isinstance(general, Mapping) or not _tables(datasets):
        raise ConfigError(Problem(file, 0, "expected [general], [[datasets]] and [[datasets.subsets]]"))
    for one in datasets:
        if not _tables(one.get("subsets", [])):
            raise ConfigError(Problem(file, 0, "datasets.subsets: expected [[datasets.subsets]], a table a folder"))
    for key in set(table) - {"general", "datasets"}:
        told.note(key, table[key], "sd-scripts' data sets know [general] and [[datasets]] alone")
        told.warnings.append(f"{file}: {key}: sd-scripts' data sets do not know it: not taken over")
    told.general = dict(general)
    told.datasets = [dict(one) for one in datasets]


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
