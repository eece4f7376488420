"""Make the pages: sections are modules beside this one, each with its data, a template, a script and a style sheet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lorabuild import __version__
from lorabuild.errors import UserError, told
from lorabuild.report.files import ProjectFiles, page_name

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
# In the order of the page. A module `lorabuild/report/<section>.py` has TITLE, `data(files) -> dict | None` (None: nothing
# to show, the section is left out), and may have LIBRARIES (files of static/vendor or static/, for sections that share
# them) and `beside(files)`, the files that stand beside the page. templates/<section>.html shows `data`;
# static/<section>.js and .css are there or not; static/<section>.<part>.js is put before it, into one scope.
SECTIONS = (
    "overview", "sweep", "curves", "blocks", "shrink", "sheets", "strip", "ablation", "dataset", "recipe", "loaders", "provenance",
)  # fmt: skip
FAULT = "cannot be shown (if nobody has edited build/, a fault in lorabuild)"
CSP = (
    "default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Section:
    """A section of one page: its HTML, and what its script reads. `fault` is one line where its data cannot be made."""

    name: str
    title: str
    html: str
    data: Mapping[str, Any]
    fault: str = ""


def render_project(files: ProjectFiles, commit: str = "") -> str:
    """The whole page of a project: no other file and no network is needed to read it."""
    found = list(_sections(files))
    names = [one.name for one in found]
    return _template("page.html").render(
        files=files,
        sections=found,
        styles=[_static(f"{name}.css") for name in ("page", *names)],
        vendor=_vendored(names),
        scripts=[_script(name) for name in ("page", *(one.name for one in found if not one.fault))],
        data={one.name: _safe_json(one.data) for one in found if _script(one.name) and not one.fault},
        commit=commit,
        csp=CSP,
        version=__version__,
    )


def render_index(projects: Sequence[ProjectFiles], commit: str = "") -> str:
    """The page that leads to those of the projects."""
    from lorabuild.report.index import data

    return _template("index.html").render(
        data=data(projects),
        styles=[_static("page.css"), _static("index.css")],
        scripts=[_script("page"), _script("index")],
        commit=commit,
        csp=CSP,
        version=__version__,
        page_name=page_name,
    )


def beside(files: ProjectFiles) -> dict[str, Path | bytes]:
    """What stands beside a page, by path from its folder `<project>/`: pictures in full size, say."""
    found: dict[str, Path | bytes] = {}
    for module in _modules().values():
        try:
            found |= module.beside(files) if hasattr(module, "beside") else {}
        except Exception:  # as in `_sections`, which tells of it
            continue
    return found


@cache
def _modules() -> dict[str, ModuleType]:
    """The sections that are there."""
    names = [name for name in SECTIONS if find_spec(f"lorabuild.report.{name}")]
    return {name: import_module(f"lorabuild.report.{name}") for name in names}


def _sections(files: ProjectFiles) -> Iterator[Section]:
    for name, module in _modules().items():
        try:
            data = module.data(files)
            html = _template(f"{name}.html").render(data=data, files=files) if data is not None else None
        except (UserError, OSError) as error:  # a file of the user's, or one that a build has just taken away
            said = "; ".join(map(str, error.problems)) if isinstance(error, UserError) else told(error, files.root)
            # A page may be sent to somebody: what lies in the repository is told by its place there.
            yield Section(name, module.TITLE, "", {}, said.replace(f"{files.root}{os.sep}", ""))
        except Exception as error:  # a file in build/ that was edited, or our own mistake: the rest of the page counts
            said = f"{FAULT}: {type(error).__name__}: {error}"
            yield Section(name, module.TITLE, "", {}, said)
        else:
            if html is not None:
                yield Section(name, module.TITLE, html, data)


def _vendored(names: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, text) of the libraries that these sections use, each once."""
    files = dict.fromkeys(file for name in names for file in getattr(_modules()[name], "LIBRARIES", ()))
    return [("css" if file.endswith(".css") else "js", _static(f"vendor/{file}") or _static(file)) for file in files]


def _static(name: str) -> str:
    """The text of one of our files, as it goes into a page; empty if there is none. A newcomer's section may have no style."""
    from markupsafe import Markup

    path = HERE / "static" / name
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    assert "</script" not in text.lower() and "</style" not in text.lower(), f"{name} would end its own element"
    return Markup(text)


def _script(name: str) -> str:
    """The script of a section. Parts of it, `<section>.<part>.js`, share one scope with it, and are of no other."""
    from markupsafe import Markup

    parts = sorted((HERE / "static").glob(f"{name}.*.js"))
    if not parts:
        return _static(f"{name}.js")
    texts = [_static(path.name) for path in parts] + [_static(f"{name}.js")]
    return Markup('(() => {\n"use strict";\n%s})();\n') % Markup("").join(texts)


def _safe_json(value: Any) -> str:
    """JSON that may stand in a script element: no sign in it begins or ends a tag, and no number is NaN."""
    from markupsafe import Markup

    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _plain(value: Any) -> Any:
    """The value with null for numbers that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    from lorabuild.report.words import FILTERS

    found.filters |= FILTERS
    return found


def _template(name: str) -> Any:
    return _environment().get_template(name)
