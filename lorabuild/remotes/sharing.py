"""What a build asks of the remote store: it never fails a build, and says at most once what is wrong with the remote."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorabuild.remotes.remote import Damaged, Remote, Shared
from lorabuild.remotes.transport import Folder, Unreachable
from lorabuild.state import State
from lorabuild.store import Store

FROM_REMOTE = "from the remote"
Metadata = Mapping[str, Mapping[str, str]]  # digest of a user's LoRA -> its metadata


def remote_of(settings: Mapping[str, Any], store: Store) -> Remote | None:
    """The remote that [store] names, if it names one. Nothing is opened or imported yet."""
    return Remote(Folder(settings["remote"]), store) if settings.get("remote") else None


def note_fetched(shared: Shared, state: State, store: Store) -> None:
    """Tell the state of what came: the blobs, which were just read, and headers of files that may not be here."""
    for output in shared.record.outputs.values():
        if (blob := store.blob(output.digest)).exists():
            state.remember(blob, output.digest, ours=True)
    for digest, metadata in shared.metadata.items():
        if state.get(f"metadata:{digest}") is None:
            state.put(f"metadata:{digest}", json.dumps(metadata))


@dataclass
class Sharing:
    """Fetches what somebody has built already, and uploads beside the build what this one has built.

    A remote that does not answer is let alone for the rest of the run, so that nobody waits for it job after job.
    """

    remote: Remote | None
    state: State
    store: Store
    read_only: bool
    warn: Callable[[str], None]
    note: Callable[[str], None]
    _queue: queue.SimpleQueue[tuple[str, Metadata] | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _said: set[str] = field(default_factory=set)
    _deaf: bool = False  # no answer, or no permission to read
    _full: bool = False  # uploads fail
    _left: bool = False  # nobody waits for uploads any more

    def __enter__(self) -> Sharing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.leave()
        self.close()

    def fetch(self, wanted: Mapping[str, Sequence[str]]) -> bool:
        """Bring records, key -> roles, from the remote into the store. True if any came."""
        came = [key for key, roles in wanted.items() if self._fetched(key, roles)]
        return bool(came)

    def offer(self, keys: Sequence[str], metadata: Metadata) -> None:
        """Upload these records while the build goes on; those that the remote has are left as they are."""
        if not self.uploads:
            return
        with self._mutex:
            if self._thread is None:
                self._thread = threading.Thread(target=self._upload, daemon=True)
                self._thread.start()
        for key in keys:
            self._queue.put((key, metadata))

    @property
    def uploads(self) -> bool:
        """Is there a remote that takes what is built?"""
        return self.remote is not None and not (self.read_only or self._deaf or self._full or self._left)

    def leave(self) -> None:
        """Begin no upload any more and wait for none, as the build was interrupted: `lorabuild push` makes up for it."""
        self._left = True

    def close(self) -> None:
        """Wait for what is being uploaded."""
        if self._thread is None or self.remote is None or self._left:
            return
        self._queue.put(None)
        self._thread.join(1)
        if self._thread.is_alive():
            self.note(f"uploading to {self.remote.folder.url} … (what Ctrl-C leaves out, `lorabuild push` uploads)")
            self._thread.join()

    def _fetched(self, key: str, roles: Sequence[str]) -> bool:
        if self.remote is None or self._deaf:
            return False
        try:
            shared = self.remote.fetch(key, roles)
        except Damaged as error:
            self._warn_once("damaged", f"{error}; what is damaged there is built here")
            return False
        except Unreachable as error:
            self._deaf = True
            self._warn_once("unreachable", f"{error}; the build goes on without it")
            return False
        if shared is not None:
            note_fetched(shared, self.state, self.store)
        return shared is not None

    def _upload(self) -> None:
        assert self.remote is not None
        while (item := self._queue.get()) is not None:
            if self._deaf or self._full or self._left:
                continue
            try:
                self.remote.put(*item)
            except Unreachable as error:
                self._full = True
                self._warn_once("unreachable", f"{error}; not everything was uploaded: `lorabuild push` does it later")
            except (Damaged, OSError) as error:  # of one record alone, and here
                self._warn_once("local", f"{error}; that is not uploaded, the rest is")

    def _warn_once(self, kind: str, text: str) -> None:
        with self._mutex:
            if kind in self._said:
                return
            self._said.add(kind)
        assert self.remote is not None
        self.warn(f"remote store {self.remote.folder.url}: {text}")
