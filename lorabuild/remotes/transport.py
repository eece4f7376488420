"""Read and write files of a shared folder by URL (S3, a disk, SSH, …), with time limits and retries, through fsspec."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from lorabuild.manifest.values import REMOTES

TRIES = 3
PAUSE_SECONDS = 0.3  # before the second try; three times as long before each that follows
PATIENCE_SECONDS = 20.0  # for an answer, …
BUCKETS = ("s3", "gs")  # their folders are there when a file is in them
SLOWEST = 1 << 18  # … and a second more for each 256 KiB: what comes more slowly than that is not coming

# Its own retries and sockets without end would make ours mean nothing.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {"connect_timeout": 5, "read_timeout": PATIENCE_SECONDS, "retries": {"max_attempts": 0}},
        "use_listings_cache": False,
    },
    "gs": {"requests_timeout": PATIENCE_SECONDS, "cache_timeout": 0},
    "file": {"auto_mkdir": True},
}
Put = Callable[[Any, str, "Path | bytes", bool], bool]  # file system, path, content, replace -> was it written?

Answer = TypeVar("Answer")


class Unreachable(Exception):
    """The folder cannot be used just now, or not by us; one line says why."""


class Refused(Unreachable):
    """No other try would be of use: no permission, no such bucket, a package that is missing."""


class Folder:
    """A folder at `url`; names in it are relative, with `/`. Nothing is imported or opened before the first use.

    Every method raises Unreachable after TRIES tries, and at once where another try would be of no use.
    """

    def __init__(self, url: str):
        self.url = url
        self.protocol = url.partition("://")[0]
        self._mutex = threading.Lock()
        self._opened: tuple[Any, str] | None = None

    def exists(self) -> bool:
        """Is there anything in the folder? Raises Unreachable also where not even its bucket is there."""
        try:
            return bool(self._tried(lambda fs, root: fs.ls(root, detail=False)))
        except FileNotFoundError:
            if self.protocol not in BUCKETS:
                return False
        try:
            self._tried(lambda fs, root: fs.ls(root.partition("/")[0], detail=False))
        except FileNotFoundError as error:
            raise Refused(f"no such bucket: {_one_line(error)}") from error
        return False

    def sizes(self, under: str) -> dict[str, int]:
        """Name -> bytes of every file below `under`, by one listing; {} where there is no such folder."""
        try:
            found = self._tried(lambda fs, root: fs.find(f"{root}/{under}", detail=True))
        except FileNotFoundError:
            return {}
        start = len(f"{self._open()[1]}/")
        return {name[start:]: info["size"] for name, info in found.items()}

    def size(self, name: str) -> int | None:
        """The bytes of a file; None if there is none."""
        try:
            return self._tried(lambda fs, root: fs.info(f"{root}/{name}")["size"])
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError."""
        return self._tried(lambda fs, root: fs.cat_file(f"{root}/{name}"))

    def download(self, name: str, parts: Path, size: int) -> Path:
        """A new file in `parts` with what `name` holds; about `size` bytes are expected. Raises FileNotFoundError."""
        parts.mkdir(parents=True, exist_ok=True)

        def get(fs: Any, root: str) -> Path:
            handle, part = tempfile.mkstemp(
                prefix=".download.", dir=parts
            )  # one a try: a late one writes on in its own
            os.close(handle)
            try:
                fs.get_file(f"{root}/{name}", part)
            except BaseException:
                os.unlink(part)
                raise
            return Path(part)

        return self._tried(get, size)

    def upload(self, name: str, content: Path | bytes, replace: bool = False) -> bool:
        """Write a file, whole or not at all. False if there is one of that name, which stays, unless `replace`."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        put = PUT.get(self.protocol, _put_beside)
        try:
            return self._tried(lambda fs, root: put(fs, f"{root}/{name}", content, replace), size)
        except FileNotFoundError as error:  # the bucket, say
            raise Refused(_one_line(error)) from error

    def remove(self, name: str) -> None:
        """Remove a file; nothing if there is none."""
        with suppress(FileNotFoundError):
            self._tried(lambda fs, root: fs.rm_file(f"{root}/{name}"))

    def _tried(self, work: Callable[[Any, str], Answer], size: int = 0) -> Answer:
        """What `work` gives, within a time that allows for `size` bytes."""
        _import(self.protocol)  # not on the time of the first answer
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_SECONDS * 3 ** (attempt - 1))
            try:
                return within(PATIENCE_SECONDS + size / SLOWEST, lambda: work(*self._open()))
            except (FileNotFoundError, Unreachable):
                raise
            except PermissionError as error:
                raise Refused(f"no permission: {_one_line(error)}") from error
            except Exception as error:  # each library has its own for a server that is not well
                failure = error
        raise Unreachable(_one_line(failure)) from failure

    def _open(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it."""
        with self._mutex:
            if self._opened is None:
                self._opened = _opened(self.url, self.protocol)
            return self._opened


def _import(protocol: str) -> None:
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(protocol)
    except ImportError:
        extra = REMOTES[protocol]
        raise Refused(f"a package for {protocol}:// is missing: pip install 'lorabuild[{extra}]'") from None


def _opened(url: str, protocol: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    fs, root = url_to_fs(url, skip_instance_cache=True, **OPTIONS.get(protocol, {}))
    if hasattr(fs, "retries"):
        fs.retries = 1  # the tries are ours
    return fs, root.rstrip("/")


def _put_conditional(fs: Any, path: str, content: Path | bytes, replace: bool) -> bool:
    """For a server that can be told to write a file only if there is none of that name (If-None-Match)."""
    try:
        _write(fs, path, content, mode="overwrite" if replace else "create")
    except FileExistsError:
        return False
    except (OSError, NotImplementedError) as error:
        if "NotImplemented" not in f"{type(error).__name__} {error}":
            raise
        return _put_whole(fs, path, content, replace)  # S3's protocol, but not all of it
    return True


def _put_whole(fs: Any, path: str, content: Path | bytes, replace: bool) -> bool:
    """For a server where a file is there when all of it is."""
    if not replace and fs.exists(path):
        return False
    _write(fs, path, content)
    return True


def _put_beside(fs: Any, path: str, content: Path | bytes, replace: bool) -> bool:
    """For disks: under a name of its own first, so that nobody finds half a file, however this one ends."""
    part = f"{path}.{uuid.uuid4().hex}.part"
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    try:
        if not replace and fs.exists(path):
            return False
        _write(fs, part, content)
        if replace or not _linked(fs, part, path):
            fs.mv(part, path)
    finally:
        if fs.exists(part):
            fs.rm_file(part)
    return True


def _linked(fs: Any, part: str, path: str) -> bool:
    """Give `part` its name unless somebody has just taken it; False where there are no hard links."""
    try:
        fs.link(part, path)
    except FileExistsError:
        pass  # the first one stays, and for the same key or digest it is as good
    except (OSError, AttributeError, NotImplementedError):
        return False
    return True


PUT: dict[str, Put] = {"s3": _put_conditional, "memory": _put_conditional, "gs": _put_whole}


def _write(fs: Any, path: str, content: Path | bytes, **how: Any) -> None:
    fs.pipe_file(path, content, **how) if isinstance(content, bytes) else fs.put_file(str(content), path, **how)


def within(seconds: float, work: Callable[[], Answer]) -> Answer:
    """What `work` gives or raises; TimeoutError if it has not ended in time. Then it is left to itself."""
    ended: list[Callable[[], Answer]] = []

    def run() -> None:
        try:
            value = work()
            ended.append(lambda: value)
        except BaseException as error:
            raised = error
            ended.append(lambda: _raise(raised))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return ended[0]()


def _raise(error: BaseException) -> Any:
    raise error


def _one_line(error: BaseException) -> str:
    said = (getattr(error, "strerror", None) or str(error)).strip()
    where = f": {error.filename}" if getattr(error, "filename", None) else ""
    return f"{said.splitlines()[0]}{where}" if said else type(error).__name__
