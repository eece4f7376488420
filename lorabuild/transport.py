"""Read and write files of a shared folder by URL (S3, a disk, SSH, …), with time limits and retries, through fsspec."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lorabuild.manifest.values import REMOTES

TRIES = 3
PAUSE_SECONDS = 0.3  # before the second try; three times as long before each that follows
PATIENCE_SECONDS = 20.0  # for an answer, …
SLOWEST = 1 << 18  # … and a second more for each 256 KiB: what comes more slowly than that is not coming

# Its own retries and sockets without end would make ours mean nothing.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": PATIENCE_SECONDS, "retries": {"max_attempts": 0}}},
    "file": {"auto_mkdir": True},
}
# Whose servers can be told to write a file only if there is none of that name (If-None-Match).
CONDITIONAL = ("s3", "gs", "memory")

Answer = TypeVar("Answer")


class Unreachable(Exception):
    """The folder cannot be used just now, or not by us; one line says why."""


class Folder:
    """A folder at `url`; names in it are relative, with `/`. Nothing is imported or opened before the first use.

    Every method raises Unreachable after TRIES tries, and at once where another try would be of no use.
    """

    def __init__(self, url: str):
        self.url = url
        self.protocol = url.partition("://")[0]
        self._mutex = threading.Lock()
        self._opened: tuple[Any, str] | None = None

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
        put = self._put_conditional if self.protocol in CONDITIONAL else self._put_beside
        try:
            return self._tried(lambda fs, root: put(fs, root, name, content, replace), size)
        except FileNotFoundError as error:  # the bucket, say
            raise Unreachable(_one_line(error)) from error

    def _put_conditional(self, fs: Any, root: str, name: str, content: Path | bytes, replace: bool) -> bool:
        mode = "overwrite" if replace else "create"
        try:
            _write(fs, f"{root}/{name}", content, mode=mode)
        except FileExistsError:
            return False
        except (OSError, NotImplementedError) as error:
            if "NotImplemented" not in f"{type(error).__name__} {error}":
                raise
            _write(fs, f"{root}/{name}", content, mode="overwrite")  # a server that knows no conditions
        return True

    def _put_beside(self, fs: Any, root: str, name: str, content: Path | bytes, replace: bool) -> bool:
        """Under a name of its own first: nobody finds half a file, however this one ends."""
        target, part = f"{root}/{name}", f"{root}/v1/part/{uuid.uuid4().hex}"
        for path in (target, part):
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            _write(fs, part, content)
            if not replace and fs.exists(target):
                return False
            if self.protocol == "file" and not replace and _linked(fs, part, target):
                return True
            fs.mv(part, target)
        finally:
            if fs.exists(part):
                fs.rm_file(part)
        return True

    def _tried(self, work: Callable[[Any, str], Answer], size: int = 0) -> Answer:
        """What `work` gives, within a time that allows for `size` bytes."""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_SECONDS * 3 ** (attempt - 1))
            try:
                return _within(PATIENCE_SECONDS + size / SLOWEST, lambda: work(*self._open()))
            except (FileNotFoundError, Unreachable):
                raise
            except PermissionError as error:
                raise Unreachable(f"no permission: {_one_line(error)}") from error
            except Exception as error:  # each library has its own for a server that is not well
                failure = error
        raise Unreachable(_one_line(failure)) from failure

    def _open(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it."""
        with self._mutex:
            if self._opened is None:
                self._opened = _opened(self.url, self.protocol)
            return self._opened


def _opened(url: str, protocol: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    settings = {"use_listings_cache": False, "skip_instance_cache": True, **OPTIONS.get(protocol, {})}
    try:
        fs, root = url_to_fs(url, **settings)
    except ImportError:
        extra = REMOTES[protocol]
        raise Unreachable(f"a package for {protocol}:// is missing: pip install 'lorabuild[{extra}]'") from None
    if hasattr(fs, "retries"):
        fs.retries = 1  # the tries are ours
    return fs, root.rstrip("/")


def _write(fs: Any, path: str, content: Path | bytes, **how: Any) -> None:
    fs.pipe_file(path, content, **how) if isinstance(content, bytes) else fs.put_file(str(content), path, **how)


def _linked(fs: Any, part: str, target: str) -> bool:
    """Give `part` its name unless somebody has just taken it; False where the disk has no hard links."""
    try:
        fs.link(part, target)
    except FileExistsError:
        pass  # the first one stays, and for the same key or digest it is as good
    except OSError:
        return False
    return True


def _within(seconds: float, work: Callable[[], Answer]) -> Answer:
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
