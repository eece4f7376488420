"""What a repository names on this machine: its TOML files, bases, tokenizers and remote store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lorabuild.checks.base import check_base
from lorabuild.components import FOLDERS
from lorabuild.data.tokenizers import FETCH, find_clip, find_vocabulary
from lorabuild.doctor.line import Line, fail, ok, one_line, warn
from lorabuild.doctor.packages import installed
from lorabuild.errors import JobError
from lorabuild.executors.choose import LOCAL, PACKAGES
from lorabuild.executors.needs import Needs
from lorabuild.manifest import Repository
from lorabuild.manifest.bases import base_path, model_folders
from lorabuild.manifest.repository import survey
from lorabuild.manifest.whence import Whence
from lorabuild.remotes.transport import Folder, Unreachable, within
from lorabuild.stages import STAGES

REMOTE_SECONDS = 15.0
NETWORKS = tuple(name for name in FOLDERS if not name.startswith("tokenizer"))


def look_at_files(root: Path) -> tuple[Repository | None, list[Line]]:
    """The repository as far as its TOML files are right, and a line for each mistake in them."""
    repository, problems = survey(root)
    lines = [fail("repository", str(one), "put it right; `lorabuild check` tells all of them") for one in problems]
    if repository and not problems:
        count = len(repository.projects)
        lines.append(ok("repository", f"{root}, {count} project{'s' * (count != 1)}"))
    return repository, lines


def look_at_bases(repository: Repository) -> Iterator[Line]:
    """Is each base found and whole, by its headers? What no project uses only warns."""
    whence = Whence(repository)
    for name in repository.bases:
        checked = check_base(repository, name, NETWORKS, whence)
        for one in checked.findings:
            bad = fail if name in repository.used_bases and one.level == "error" else warn
            where = "lorabuild.toml names its file; [models] dirs in lorabuild.local.toml, where this machine has it"
            helps = where if one.code == "LB020" else f"`lorabuild explain {one.code}` tells what helps"
            yield bad("base", one_line(one.message), helps)
        if not checked.findings:
            yield ok("base", f"{name}: {checked.path or 'generated here'}")


def look_at_tokenizers(repository: Repository | None) -> Iterator[Line]:
    """The vocabulary of each single-file base; else whether CLIP's would be found for one."""
    files = dict(_single_files(repository)) if repository else {}
    dirs = model_folders(repository) if repository else []
    for name, path in files.items():
        try:
            yield ok("tokenizer", f"{name}: {find_vocabulary(path, dirs)}")
        except JobError as error:
            bad = fail if repository and name in repository.used_bases else warn
            yield bad("tokenizer", f"{name}: {error}", f"{FETCH}, or the files that it names (docs/tokenizers.md)")
    if not files:
        yield _clip(dirs)


def look_at_remote(url: str | None, seconds: float = REMOTE_SECONDS) -> Iterator[Line]:
    """Does the remote store answer? In a bounded time, and nothing is written."""
    if not url:
        yield ok("remote", "none is named ([store] remote)")
        return
    try:
        there = within(seconds, Folder(url).exists)
    except (Unreachable, TimeoutError) as error:
        yield fail(
            "remote",
            f"{url}: {one_line(str(error))}",
            "see network, address and keys (docs/remote.md); builds go on without it",
        )
        return
    yield ok("remote", f"{url} answers" + ("" if there else "; nothing is there yet"))


def look_at_executor(repository: Repository) -> Iterator[Line]:
    """What other machines build, and whether the package that asks them is here. They themselves are not asked."""
    settings, remote = repository.executor, repository.store["remote"]
    if (kind := settings["kind"]) == LOCAL:
        yield ok("executor", "all is built on this machine ([executor] kind)")
        return
    package = PACKAGES[kind]
    if (have := installed(package)) is None:
        yield fail("executor", f"{kind}: {package} is not installed", f"pip install 'lorabuild[{kind}]'")
        return
    stages = Needs(settings, STAGES, remote).stages
    names = ", ".join(name for name in STAGES if name in stages)
    yield ok("executor", f"{kind} ({package} {have}) builds {names}; all goes through {remote}")


def _single_files(repository: Repository) -> Iterator[tuple[str, Path]]:
    for name in repository.bases:
        try:
            path = base_path(repository, name)
        except JobError:  # told of the base
            continue
        if path and path.is_file():
            yield name, path


def _clip(dirs: Sequence[Path]) -> Line:
    found = find_clip(dirs)
    if found:
        return ok("tokenizer", f"CLIP's: {found}")
    return ok("tokenizer", f"CLIP's was not found; a single-file base would need it (`{FETCH}`)")
