"""The files that make a folder a repository; what stands there already is added to or left, never replaced."""

from __future__ import annotations

import os
import re
import tomllib
from configparser import ConfigParser
from configparser import Error as IniError
from dataclasses import dataclass
from pathlib import Path

from lorabuild.errors import ConfigError, Problem
from lorabuild.graph import COMMANDS
from lorabuild.scaffold.edit import with_value
from lorabuild.scaffold.recipes import copied, packaged
from lorabuild.scaffold.schemas import files, first_line

DODO = '''\
"""Hands lorabuild's tasks to doit."""

from lorabuild.graph import DOIT_CONFIG, task_lorabuild  # noqa: F401
'''

SHARED = """\
# What all projects of this repository share. What only this machine has (folders of models, slots, a remote store) goes
# to lorabuild.local.toml, which git ignores.

# The base models that projects may name. This one is generated here: SDXL's exact structure in miniature, with random
# weights, to try things out. Nothing is downloaded, and it runs on any processor.
[bases.tiny]
builtin = "tiny-sdxl"

# A real one: a .safetensors file or a diffusers folder, seen from here or from one of [models] dirs.
# [bases.pony]
# file = "ponyDiffusionV6XL_v6StartWithThisOne.safetensors"
# default = true                      # what `lorabuild new` takes if --base names none
# prediction_type = "epsilon"         # or "v_prediction"

# Where such files lie. As each machine has its own folders, this is better said in lorabuild.local.toml.
# [models]
# dirs = ["~/ComfyUI/models/checkpoints"]

# How many jobs run at the same time under `doit -n`: heavy ones, one a GPU, and others.
# [slots]
# gpu = 1
# cpu = 2

# What plain `doit` builds. Pictures take time, so that they are drawn when asked for: `doit samples`.
# [build]
# default = ["base", "norms", "dataset", "latents", "train", "spectrum", "resize", "chop", "samples"]
"""

IGNORED = ("/build/", "/.lorabuild/", "/lorabuild.local.toml", "__pycache__/")
REGISTERED = {name: f"lorabuild.graph:{command.__name__}" for name, command in COMMANDS.items()}


@dataclass(frozen=True)
class Step:
    """What becomes of one file: its new bytes (None: it stays as it is), and what is said of that."""

    path: Path
    data: bytes | None
    said: str


def steps(root: Path) -> list[Step]:
    """All that a repository needs at `root`, also what is there already. Writes nothing. Raises ConfigError."""
    made = {"lorabuild.toml": (first_line("lorabuild", "lorabuild.toml") + SHARED).encode()}
    made |= {f"recipes/{path.name}": copied(path, schema=True) for path in packaged().values()}
    found = [
        *([_of_others(root)] if is_of_others(root) else [_dodo(root), _registered(root)]),
        *(_made(root / name, data, name) for name, data in (made | files()).items()),
    ]
    return [*found, _ignored(root)]


def is_of_others(root: Path) -> bool:
    """Is there a dodo.py that builds something else? Under our commands doit would no longer know its tasks."""
    path = root / "dodo.py"
    return os.path.lexists(path) and not (path.exists() and b"lorabuild.graph" in path.read_bytes())


def _of_others(root: Path) -> Step:
    said = (
        "left dodo.py and doit's settings as they are: doit builds something else here; `lorabuild build` builds LoRAs"
    )
    return Step(root / "dodo.py", None, said)


def _made(path: Path, data: bytes, name: str) -> Step:
    """A link that leads nowhere is there, too: it is somebody's."""
    return Step(path, None, f"left {name} as it is") if os.path.lexists(path) else Step(path, data, f"made {name}")


def _dodo(root: Path) -> Step:
    return _made(root / "dodo.py", DODO.encode(), "dodo.py")


def _registered(root: Path) -> Step:
    """Our commands, registered with doit where its settings stand already: pyproject.toml, or doit.cfg."""
    pyproject, ini = root / "pyproject.toml", root / "doit.cfg"
    if ini.exists() or not pyproject.exists():
        return _in_ini(ini)
    return _in_pyproject(pyproject)


def _in_pyproject(path: Path) -> Step:
    data = path.read_bytes()
    above = ("tool", "doit", "plugins", "command")
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise ConfigError(Problem(path.name, 0, f"wrong TOML: {error}")) from None
    for key in above:
        table = table.get(key, {}) if isinstance(table, dict) else {}
    missing = [name for name in REGISTERED if name not in table]
    for name in missing:
        data = with_value(data, (*above, name), f'"{REGISTERED[name]}"')
    return Step(path, data if missing else None, _told("pyproject.toml", missing))


def _in_ini(path: Path) -> Step:
    if not path.exists():
        return Step(path, _section(REGISTERED).encode(), "made doit.cfg: doit's verbs of this repository")
    parser = ConfigParser(allow_no_value=True, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as doit reads it
    try:
        whole = path.read_bytes().decode()
        text = whole.replace("\r\n", "\n")
        parser.read_string(text)
    except (IniError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(path.name, 0, " ".join(str(error).split()))) from None
    known = dict(parser["COMMAND"]) if parser.has_section("COMMAND") else {}
    missing = {name: where for name, where in REGISTERED.items() if name not in known}
    if not missing:
        return Step(path, None, _told("doit.cfg", []))
    if "COMMAND" in parser:
        lines = "".join(f"{name} = {where}\n" for name, where in missing.items())
        text = re.sub(r"(?m)^\[COMMAND\][^\n]*(\n|\Z)", lambda header: f"{header[0].rstrip()}\n{lines}", text, count=1)
    else:
        text = f"{text.rstrip()}\n\n{_section(missing)}".lstrip()
    text = text.replace("\n", "\r\n") if "\r\n" in whole else text
    return Step(path, text.encode(), _told("doit.cfg", list(missing)))


def _section(commands: dict[str, str]) -> str:
    said = "# lorabuild's commands, for this repository only: `doit plan` is `lorabuild plan`.\n[COMMAND]\n"
    return said + "".join(f"{name} = {where}\n" for name, where in commands.items())


def _told(name: str, missing: list[str]) -> str:
    if not missing:
        return f"left {name} as it is"
    return f"added to {name}: " + ("lorabuild's commands" if len(missing) == len(REGISTERED) else ", ".join(missing))


def _ignored(root: Path) -> Step:
    path = root / ".gitignore"
    data = path.read_bytes() if path.exists() else b""
    there = {_bare(line) for line in data.decode(errors="replace").splitlines()}
    missing = [line for line in IGNORED if _bare(line) not in there]
    if not missing:
        return Step(path, None, "left .gitignore as it is")
    newline = b"\r\n" if b"\r\n" in data else b"\n"
    start = data if not data or data.endswith(b"\n") else data + newline
    lines = newline.join(line.encode() for line in missing) + newline
    return Step(path, start + lines, f"added to .gitignore: {', '.join(missing)}" if data else "made .gitignore")


def _bare(line: str) -> str:
    """`/build/` and `build` keep the same folder out of git."""
    return line.strip().strip("/")
