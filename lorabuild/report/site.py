"""Write build/report/: pages whose content has changed are made anew, others stay as they are."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lorabuild import __version__
from lorabuild.files import empty_folder, remove_empty, remove_leftovers, staged
from lorabuild.hashing import digest_bytes, digest_json
from lorabuild.report.files import ProjectFiles, page_name
from lorabuild.report.page import HERE, beside, render_index, render_project
from lorabuild.state import State

INDEX = "index.html"
# Between these signs stands what is of the moment: a new commit alone does not make a page anew.
COMMIT = re.compile(r"(<!--commit-->).*?(<!--/commit-->)", re.DOTALL)
SEAL = re.compile(rb"<!-- key (\w+) seal (\w+) -->\n\Z")  # the last line of a page


@dataclass(frozen=True)
class Written:
    """What a run of the report came to."""

    folder: Path
    pages: int
    made: tuple[str, ...]  # names of the pages that were made anew
    removed: tuple[str, ...] = ()


def write_report(root: Path, projects: list[ProjectFiles], state: State) -> Written:
    """Bring build/report/ up to date. Nothing outside it is written. Raises OSError."""
    folder = root / "build" / "report"
    folder.mkdir(parents=True, exist_ok=True)
    commit = commit_line(root)
    made = []
    for files in projects:
        key = digest_json([_code(), _plain(files, state)])
        if _write(folder / page_name(files.name), key, commit, lambda files=files: render_project(files, commit)):
            made.append(files.name)
        _write_beside(folder / files.name, beside(files), state)
    key = digest_json([_code(), [_plain(files, state) for files in projects]])
    if _write(folder / INDEX, key, commit, lambda: render_index(projects, commit)):
        made.append("index")
    return Written(folder, len(projects) + 1, tuple(made), tuple(_remove_others(folder, projects)))


def _write(path: Path, key: str, commit: str, render: Any) -> bool:
    """Make a page anew unless it stands as it was made under this key. True if its content had to be made."""
    whole = _read(path)
    fresh = whole is not None and whole[0] == key
    text = whole[1] if whole and fresh else render()
    from markupsafe import escape

    text = COMMIT.sub(lambda found: f"{found[1]}{escape(commit)}{found[2]}", text, count=1)
    if not fresh or whole is None or text != whole[1]:
        data = text.encode("utf-8", "replace")
        remove_leftovers(path, path.parent)
        with staged(path, path.parent, durable=False) as part:
            part.write_bytes(data + f"<!-- key {key} seal {digest_bytes(data)} -->\n".encode())
    return not fresh


def _read(path: Path) -> tuple[str, str] | None:
    """(key, text) of a page that stands as it was written; None for one that somebody has changed."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    found = SEAL.search(data)
    if found is None or digest_bytes(data[: found.start()]) != found[2].decode():
        return None
    return found[1].decode(), data[: found.start()].decode("utf-8")


def _write_beside(folder: Path, wanted: Mapping[str, Path | bytes], state: State) -> None:
    """The files beside a page; others in its folder, which are ours, go."""
    for name, content in wanted.items():
        target = folder / name
        digest = digest_bytes(content) if isinstance(content, bytes) else state.digest(content)
        if not target.is_file() or state.digest(target) != digest:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged(target, target.parent, durable=False) as part:
                part.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    keep = {folder / name for name in wanted}
    for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else ():
        if path.is_file() and path not in keep:
            path.unlink()
            remove_empty(path.parent, folder.parent)


def _remove_others(folder: Path, projects: list[ProjectFiles]) -> list[str]:
    """Remove the pages of projects that are gone, if they stand as we wrote them."""
    wanted = {INDEX, *(page_name(files.name) for files in projects)}
    removed = []
    for path in sorted(folder.glob("*.html")):
        if path.name not in wanted and _read(path) is not None:
            path.unlink()
            beside_it = folder / path.name.removesuffix(".html").removesuffix(".project")
            if beside_it.is_dir():
                empty_folder(beside_it).rmdir()
            removed.append(path.name)
    return removed


@cache
def _code() -> str:
    """A digest of all that makes the pages."""
    files = sorted(path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest_json([__version__, *([path.name, digest_bytes(path.read_bytes())] for path in files)])


def _plain(files: ProjectFiles, state: State) -> dict[str, Any]:
    """All that a page is made of, as plain values: paths with the digests of what lies there."""

    def told(path: Path | None) -> list[Any] | None:
        if path is None:
            return None
        if path.is_dir():  # of pictures, which lie in folders of it
            return [told(one) for one in sorted(path.glob("samples/*.png"))]
        try:
            return [os.path.relpath(path, files.root), state.digest(path)]
        except OSError:
            return None

    return {
        "name": files.name,
        "settings": files.settings,
        "swept": files.swept,
        "whence": files.whence,
        "paths": {role: told(path) for role, path in files.paths.items()},
        "states": {stage: asdict(one) for stage, one in files.states.items()},
        "checked": files.checked,
        "snapshots": {str(step): told(path) for step, path in files.snapshots.items()},
        "variants": {name: _plain(one, state) for name, one in files.variants.items()},
    }


def commit_line(root: Path) -> str:
    """`commit 1a2b3c4d5e6f`, and whether there are changes beside it; empty where there is no git, or no commit yet."""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"commit {head.strip()}" + (", with uncommitted changes" if changed.strip() else "")


def _git(root: Path, *args: str) -> str:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(
        ["git", *args], cwd=root, env=environment, capture_output=True, text=True, errors="replace", check=True
    )
    return done.stdout
