"""Read files of other commits through git: its own commands, and one `cat-file --batch` for all objects."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lorabuild.errors import JobError

FOLDER, FILES = b"40000", (b"100644", b"100755")  # modes in a tree object; links and submodules are left out


def is_repository(root: Path) -> bool:
    """Whether `root` lies in a git repository. Raises JobError if it does and git cannot be asked."""
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return False
    _git(root, "rev-parse", "--git-dir")
    return True


def tips(root: Path) -> list[str]:
    """What every ref leads to: branches, tags, remotes, all stashes with what they hold, and the HEAD of each work tree."""
    refs = _git(root, "for-each-ref", "--format=%(objectname)").split()
    trees = _git(root, "worktree", "list", "--porcelain").splitlines()
    heads = [line.removeprefix("HEAD ") for line in trees if line.startswith("HEAD ")]
    return [
        tip for tip in dict.fromkeys([*refs, *heads, *_stashes(root)]) if tip.strip("0")
    ]  # zeros: nothing committed yet


def commit(root: Path, revision: str) -> str:
    """The commit that `revision` names. Raises JobError in one line."""
    done = _run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        raise JobError(f"{revision}: git knows no such commit")
    return done.stdout.strip()


@dataclass(frozen=True)
class Objects:
    """The objects of a repository, read through one process."""

    process: subprocess.Popen[bytes]
    prefix: str  # where our root lies in the work tree: "" or "sub/folder/"
    _trees: dict[str, list[tuple[bytes, str, str]]] = field(default_factory=dict)

    def blob(self, name: str) -> bytes:
        """The content of a file by its object name. Raises JobError if git lacks it."""
        return self._get(name)[1]

    def files(self, tip: str, folder: str, called: str = "") -> Iterator[tuple[str, str]]:
        """(path, object name) of the files below `folder` of a commit; paths are seen from our root.

        `called`: only files of that name. Raises JobError if git lacks a part of the commit.
        """
        found = self._entry(tip, folder)
        if found and found[0] == FOLDER:
            yield from self._below(found[1], folder, called)

    def file(self, tip: str, path: str) -> bytes | None:
        """The content of a file of a commit; None if it has none. Raises JobError if git lacks a part of the commit."""
        found = self._entry(tip, path)
        return self.blob(found[1]) if found and found[0] in FILES else None

    def _entry(self, tip: str, path: str) -> tuple[bytes, str] | None:
        """(mode, object name) of what a commit has at `path`; None if it has nothing there.

        We walk there: of `tip:path` git says "missing" both where there is no such path and where it lacks an object.
        """
        kind, data = self._get(tip)
        while kind in (b"tag", b"commit"):  # each begins with what it is about: "object …", "tree …"
            tip = data.split(None, 2)[1].decode()
            kind, data = self._get(tip)
        if kind != b"tree":
            return None  # a tag of a file
        found = FOLDER, tip
        for part in f"{self.prefix}{path}".split("/"):
            inner = {entry: (mode, name) for mode, entry, name in self._tree(found[1])} if found[0] == FOLDER else {}
            if part not in inner:
                return None
            found = inner[part]
        return found

    def _below(self, tree: str, folder: str, called: str) -> Iterator[tuple[str, str]]:
        for mode, entry, name in self._tree(tree):
            if entry in (".", "..") or "/" in entry:
                continue  # no git writes such a name; whoever writes the file would write elsewhere
            path = f"{folder}/{entry}"
            if mode == FOLDER:
                yield from self._below(name, path, called)
            elif mode in FILES and called in ("", entry):
                yield path, name

    def _tree(self, name: str) -> list[tuple[bytes, str, str]]:
        """What stands in a tree object; most commits share most of theirs."""
        if name not in self._trees:
            self._trees[name] = list(_entries(self._get(name)[1], len(name) // 2))
        return self._trees[name]

    def _get(self, name: str) -> tuple[bytes, bytes]:
        """(kind, content) of an object that must be there. Raises JobError."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(name.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended over a damaged object: there is no answer
        head = self.process.stdout.readline().rsplit(b" ", 2)
        if len(head) < 3 or not head[2].strip().isdigit():  # "… missing"
            raise JobError(
                f"git lacks the object {name} of a branch, tag, stash or work tree; in a partial clone"
                " `git fetch --refetch --no-filter` brings it, else `git fsck` tells more"
            )
        size = int(head[2])
        return head[1], self.process.stdout.read(size + 1)[:size]


@contextmanager
def objects(root: Path) -> Iterator[Objects]:
    """Read objects of the repository around `root`. Raises JobError if git cannot be asked."""
    prefix = _git(root, "rev-parse", "--show-prefix").rstrip("\n")
    process = subprocess.Popen(
        ["git", "cat-file", "--batch"],
        cwd=root,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        yield Objects(process, prefix)
        assert process.stdin
        process.stdin.close()


def _entries(data: bytes, width: int) -> Iterator[tuple[bytes, str, str]]:
    """(mode, name, object name) of a tree object; object names have `width` bytes, 20 or with SHA-256 32."""
    place = 0
    while place < len(data):
        space, end = data.index(b" ", place), data.index(b"\0", place)
        yield data[place:space], os.fsdecode(data[space + 1 : end]), data[end + 1 : end + 1 + width].hex()
        place = end + 1 + width


def _stashes(root: Path) -> Iterator[str]:
    """Each stash, and the commits in it that hold the index and the untracked files; not the commit below it."""
    if _run(root, "rev-parse", "--verify", "--quiet", "refs/stash").returncode == 0:
        for line in _git(root, "log", "-g", "--format=%H %P", "refs/stash", "--").splitlines():
            stash, _, *inside = line.split()
            yield from (stash, *inside)


def _git(root: Path, *args: str) -> str:
    done = _run(root, *args)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise JobError(f"git cannot be asked about this repository: {said}")
    return done.stdout


def _run(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", *args],
            cwd=root,
            env=_environment(),
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except FileNotFoundError:
        raise JobError("this is a git repository, but git is not installed") from None


def _environment() -> Mapping[str, str]:
    """Ask without taking locks, and without fetching what a partial clone lacks."""
    return os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1"}
