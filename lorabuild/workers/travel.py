"""Let a job's state travel: what it leaves in scratch goes to the store now and then, and to whoever goes on with it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.files import PART, empty_folder
from lorabuild.hashing import digest_file, sha256_from
from lorabuild.remotes.remote import LAYOUT
from lorabuild.remotes.transport import Folder, Unreachable
from lorabuild.signature import signature

LOOK_SECONDS = 1.0  # between two looks at scratch
REST = 10  # the time between two uploads is at least this many times what one takes
MANIFEST = "state.json"


@dataclass
class Travelling:
    """The state of one job: `v1/state/<record>/`, its files, and the manifest that names them, which is written last.

    So a state that is half uploaded is never taken up. `serial` counts the uploads of a job, wherever it ran: what lies
    in `folder / "scratch"` is newer than the upload that it was made after. Files are copied by name: who writes there
    replaces them in one step (`lorabuild.nn.resume`).
    """

    remote: Folder
    record: str
    folder: Path
    seconds: float
    clock: Callable[[], float] = time.monotonic
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _saved: Mapping[str, Any] = field(default_factory=dict)  # name -> signature of what was uploaded last
    _there: set[str] = field(default_factory=set)  # the files that the manifest names
    _due: float = float("-inf")

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def take_up(self) -> None:
        """Bring the state that was uploaded last, unless what is here was made after it. What is damaged is left."""
        manifest = self._manifest()
        if manifest is None:
            return
        self._there = {one["name"] for one in manifest["files"].values()}
        if manifest["serial"] <= self._serial():
            return
        part = empty_folder(self.folder / "arriving")
        try:
            for name, one in manifest["files"].items():
                self._bring(one, part / name)
        except (FileNotFoundError, ValueError) as error:
            print(f"the state in the store is of no use: {error}")
            return
        scratch = empty_folder(self.scratch)
        for path in part.iterdir():
            path.replace(scratch / path.name)
        part.rmdir()
        self._note(manifest["serial"])

    @contextmanager
    def going_along(self) -> Iterator[None]:
        """Within, the state is uploaded as it changes. What the store does not take is left for the next time."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(min(LOOK_SECONDS, self.seconds)):
                if self.clock() >= self._due:
                    with suppress(Unreachable, OSError):
                        self.save()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def save(self) -> None:
        """Upload what is in scratch, if it is not what was uploaded last. Raises Unreachable and OSError."""
        with self._mutex:
            start = self.clock()
            seen, copies = self._copied()
            try:
                if not seen or seen == self._saved:
                    return
                self._upload(copies)
                self._saved = seen
            finally:
                shutil.rmtree(copies, ignore_errors=True)
                self._due = self.clock() + max(self.seconds, REST * (self.clock() - start)) if seen else self._due

    def forget(self) -> None:
        """The job is done: nobody goes on with it. Raises Unreachable."""
        for name in self.remote.sizes(self._name("")):
            self.remote.remove(name)

    def _copied(self) -> tuple[dict[str, Any], Path]:
        """A folder with the files of this moment, by other names: they are replaced, not written, so that these stay."""
        copies = empty_folder(self.folder / "leaving")
        seen: dict[str, Any] = {}
        for path in sorted(self.scratch.iterdir()) if self.scratch.is_dir() else ():
            if path.suffix == PART or not path.is_file():
                continue
            with suppress(FileNotFoundError):  # gone since the listing
                try:
                    os.link(path, copies / path.name)
                except OSError:
                    shutil.copyfile(path, copies / path.name)
                one = signature(copies / path.name)
                seen[path.name] = one[0], one[1], one[3]  # a link changes the time of the change of status
        return seen, copies

    def _upload(self, copies: Path) -> None:
        serial = self._serial() + 1
        files = {}
        for path in sorted(copies.iterdir()):
            name = f"{serial}-{digest_file(path)}"
            files[path.name] = {"name": name, "size": path.stat().st_size, "sha256": sha256_from(path)}
            self.remote.upload(self._name(name), path, replace=True)
        manifest = {"serial": serial, "files": files}
        self.remote.upload(self._name(MANIFEST), json.dumps(manifest).encode(), replace=True)
        self._note(serial)
        names = {one["name"] for one in files.values()}
        for old in self._there - names:
            self.remote.remove(self._name(old))
        self._there = names

    def _manifest(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.remote.read(self._name(MANIFEST)))
            files = {name: {"name": str(one["name"]), "size": int(one["size"]), "sha256": one["sha256"]}
                     for name, one in found["files"].items()}  # fmt: skip
            return {"serial": int(found["serial"]), "files": files} if all(map(_plain, files)) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _bring(self, one: Mapping[str, Any], path: Path) -> None:
        """Raises FileNotFoundError, and ValueError for what is not as the manifest says."""
        part = self.remote.download(self._name(one["name"]), self.folder / "parts", one["size"])
        if part.stat().st_size != one["size"] or sha256_from(part) != one["sha256"]:
            part.unlink()
            raise ValueError(f"{one['name']} is damaged")
        part.replace(path)

    def _serial(self) -> int:
        """The upload that what is in scratch was made after; 0: none."""
        try:
            return int((self.folder / "serial").read_text())
        except (OSError, ValueError):
            return 0

    def _note(self, serial: int) -> None:
        part = self.folder / "serial.part"
        part.write_text(str(serial))
        part.replace(self.folder / "serial")

    def _name(self, name: str) -> str:
        return f"{LAYOUT}/state/{self.record.replace('/', '.')}/{name}".rstrip("/")


def _plain(name: str) -> bool:
    """Is it a file's name, and no path that leads anywhere?"""
    return Path(name).name == name not in ("", "..")
