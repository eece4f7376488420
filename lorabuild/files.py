"""Write files so that a kill or a power cut leaves the old one or the new one, never a part."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

PART = ".part"  # ends the name of what is not whole yet


class staged:  # reads as a verb: `with staged(path, parts) as part`
    """`with staged(path, parts) as part:` write `part`, a file in the folder `parts`; at the end it becomes `path`.

    Temporary file, fsync, rename: a kill at any moment leaves the old file or the new one at `path`, and at worst a hidden
    file in `parts`. If the block fails, `path` stays as it was. Without `durable` it is not waited until the bytes are on the disk: a
    power cut may take the new file, no kill can. Raises OSError (disk full).
    """

    def __init__(self, path: Path, parts: Path, durable: bool = True):
        self.path, self.parts, self.durable = path, parts, durable

    def __enter__(self) -> Path:
        self.parts.mkdir(parents=True, exist_ok=True)
        try:
            self._handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=PART, dir=self.parts)
        except OSError as error:
            error.filename = str(self.path)
            raise
        self.part = Path(name)
        if not _lock(self._handle):
            os.close(self._handle)  # Windows renames no open file
            self._handle = None
        return self.part

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._finish()
            elif isinstance(error, OSError):
                self._name(error)
        except OSError as fault:
            self._name(fault)
            raise
        finally:
            self.part.unlink(missing_ok=True)
            if self._handle is not None:
                os.close(self._handle)

    def _name(self, error: OSError) -> None:
        """What cannot be written is told by the name that it was to have, where the system names none or the part."""
        if error.errno is not None and (error.filename is None or str(self.part) in (error.filename, error.filename2)):
            error.filename, error.filename2 = str(self.path), None

    def _finish(self) -> None:
        if self.durable:
            sync(self.part)
        self.part.chmod(0o666 & ~_umask())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(self.part, self.path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            beside = self.path.with_name(f".{self.path.name}.part")  # build/ is a link to another file system
            shutil.copyfile(self.part, beside)
            sync(beside)
            os.replace(beside, self.path)
        if self.durable:
            sync_folder(self.path.parent)


def rewrite(path: Path, data: bytes, parts: Path) -> None:
    """Give a file of the user's other bytes, whole or not at all: through the link that it may be, with the mode it had.

    `parts` as in `staged`. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    with staged(target, parts) as part:
        part.write_bytes(data)
    if mode is not None:
        target.chmod(mode)


def tail(path: Path, size: int) -> str:
    """The last `size` bytes of a log, what is no UTF-8 of them replaced; empty where there is no such file."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def remove_leftovers(path: Path, parts: Path) -> None:
    """Remove from the folder `parts` what was to become `path` and nobody writes any more: its writer was killed."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}{re.escape(PART)}")
    for part in [one for one in parts.iterdir() if ours.fullmatch(one.name)] if parts.is_dir() else ():
        try:
            handle = os.open(part, os.O_RDWR)
            if _lock(handle):
                part.unlink()
            os.close(handle)
        except OSError:  # somebody else's, or gone by now
            pass


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed, or its process ends, however that comes about. False if another has it, or
    where there are no such locks (Windows): leftovers stay there.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def sync(path: Path) -> None:
    """Make a file's bytes outlive a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut, where the system can (not on Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def empty_folder(folder: Path) -> Path:
    """`folder`, there and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_empty(folder: Path) -> bool:
    """Is it a folder, and nothing but hidden files in it?"""
    try:
        with os.scandir(folder) as entries:
            return not any(not entry.name.startswith(".") for entry in entries)
    except OSError:
        return False


def remove_empty(folder: Path, top: Path) -> None:
    """Remove the folder if nothing is in it, and then those that it is in, up to `top`, which stays."""
    while folder != top and folder.is_relative_to(top):
        try:
            folder.rmdir()
        except OSError:  # something is in it
            return
        folder = folder.parent


def _umask() -> int:
    value = os.umask(0o022)
    os.umask(value)
    return value
