"""Look at folders and files by their stat, at each once: a thing is said to be as it was when it was first looked at."""

from __future__ import annotations

import os
import time
from pathlib import Path
from stat import S_ISDIR

from lorabuild.hashing import digest_bytes
from lorabuild.signature import COARSE_GRAIN_NS, network_devices, racy, signature_of

GONE = "none"


class Scan:
    """What the folders of a repository hold at the start of a run.

    Whatever is read later is at least as new, so that what is found under these signatures never passes for something
    older than it is.
    """

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}
        self._below: dict[str, list[str]] = {}  # folder -> names of the folders in it that are no links
        self._files: dict[str, str] = {}
        self._young: set[str] = set()
        self._unreadable: list[OSError] = []

    def manifests(self, projects: Path) -> tuple[list[Path], list[OSError]]:
        """Every lora.toml below the folder `projects`, in the order of their paths, and what could not be read."""
        found = []
        waiting = [str(projects)]
        while waiting:
            folder = waiting.pop()
            self.folder(folder)
            waiting += [f"{folder}{os.sep}{name}" for name in sorted(self._below[folder], reverse=True)]
            path = f"{folder}{os.sep}lora.toml"
            seen = self._files.get(path)
            if seen is not None and (seen != GONE or os.path.islink(path)):  # a link that leads nowhere is to be told
                found.append(Path(path))
        return found, self._unreadable

    def folder(self, path: str) -> str:
        """A digest of the names and signatures of what lies directly in the folder; GONE if it cannot be listed."""
        if path not in self._folders:
            self._look(path)
        return self._folders[path]

    def file(self, path: str) -> str:
        """The signature of a file, as text; of a folder that it is one; GONE if there is neither."""
        if path not in self._files:
            try:
                stat = os.stat(path)
            except OSError:
                self._files[path] = GONE
            else:
                self._note(path, stat, time.time_ns())
        return self._files[path]

    def is_young(self, path: str) -> bool:
        """Was the file, or one in the folder, so young that it may have changed since, unnoticed?"""
        return path in self._young

    def _look(self, folder: str) -> None:
        """Note what lies in a folder, and of the TOML files in it their signatures."""
        lines, below, now_ns, network = [], [], time.time_ns(), network_devices()
        horizon_ns = now_ns - COARSE_GRAIN_NS
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    try:
                        stat = entry.stat()
                    except OSError:  # a link that leads nowhere
                        lines.append(name)
                        self._files[f"{folder}{os.sep}{name}"] = GONE
                        continue
                    if S_ISDIR(stat.st_mode):
                        lines.append(f"{name}/")
                        if not entry.is_symlink():
                            below.append(name)
                        continue
                    # signature_of, spelled out: this line runs once a file
                    inode = 0 if stat.st_dev in network else stat.st_ino
                    lines.append(f"{name}\n{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {inode}")
                    if stat.st_mtime_ns > horizon_ns and racy(signature_of(stat), now_ns):
                        self._young.add(folder)
                    if name.endswith(".toml"):
                        self._note(f"{folder}{os.sep}{name}", stat, now_ns)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._unreadable.append(error)
            self._folders[folder], self._below[folder] = GONE, []
            return
        lines.sort()
        self._folders[folder] = digest_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        self._below[folder] = below

    def _note(self, path: str, stat: os.stat_result, now_ns: int) -> None:
        if S_ISDIR(stat.st_mode):
            self._files[path] = "folder"
            return
        self._files[path] = " ".join(map(str, signature_of(stat)))
        if racy(signature_of(stat), now_ns):
            self._young.add(path)
