"""Let writes fail as a full or a broken disk lets them fail: Python imports this first where it stands in PYTHONPATH.

FAULT="write ENOSPC 2 */store/part/*": from the second write on to a file of such a name, the disk is full. Beside write there
are open (to write), fsync, replace (to such a name), and sqlite (statements that write; the name is the database's). Beside
ENOSPC there are EIO, and SIGKILL, which ends the process there.
"""

import builtins
import errno
import fnmatch
import io
import os
import signal
import sqlite3

WRITING = ("replace", "insert", "update", "delete", "create")
SQLITE = {  # as SQLite says it
    "ENOSPC": ("database or disk is full", sqlite3.SQLITE_FULL),
    "EIO": ("disk I/O error", sqlite3.SQLITE_IOERR_WRITE),
}


class Fault:
    def __init__(self, said: str):
        self.op, self.error, number, self.pattern = said.split(" ", 3)
        self.left = int(number)

    def of(self, op: str, path: object) -> bool:
        return op == self.op and fnmatch.fnmatch(os.fspath(path), self.pattern)

    def due(self, op: str, path: object) -> bool:
        self.left -= self.of(op, path)
        return self.left <= 0 and self.of(op, path)

    def os_error(self, *path: str) -> OSError:
        self.kill()
        number = getattr(errno, self.error)
        return OSError(number, os.strerror(number), *path)

    def kill(self) -> None:
        if self.error == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)

    def sqlite_error(self) -> sqlite3.Error:
        self.kill()
        text, code = SQLITE[self.error]
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code
        return error


class Written:
    """A file whose writes fail in their middle; the error names no file, as the system's does not."""

    def __init__(self, file, path, fault: Fault):
        self.__dict__.update(file=file, path=path, fault=fault)

    def write(self, data):
        if self.fault.due("write", self.path):
            self.file.write(data[: len(data) // 2])
            raise self.fault.os_error()
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def name_of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


def install(fault: Fault) -> None:
    opened, os_open, fsync, replace = io.open, os.open, os.fsync, os.replace
    connect = sqlite3.connect

    def open_(path, mode="r", *args, **kwargs):
        if isinstance(path, int) or not set(mode) & set("wax+"):
            return opened(path, mode, *args, **kwargs)
        if fault.due("open", path):
            raise fault.os_error(os.fspath(path))
        file = opened(path, mode, *args, **kwargs)
        return Written(file, path, fault) if fault.of("write", path) else file

    def os_open_(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and fault.due("open", path):
            raise fault.os_error(os.fspath(path))
        return os_open(path, flags, *args, **kwargs)

    def fsync_(handle):
        if fault.due("fsync", name_of(handle)):
            raise fault.os_error()
        return fsync(handle)

    def replace_(source, target, **kwargs):
        if fault.due("replace", target):
            raise fault.os_error(os.fspath(source), None, os.fspath(target))
        return replace(source, target, **kwargs)

    def copying(copy, target_of):
        def copy_(*args, **kwargs):
            if fault.due("write", name_of(target_of(args))):
                raise fault.os_error()
            return copy(*args, **kwargs)

        return copy_

    class Connection(sqlite3.Connection):
        def execute(self, statement, *args):
            if statement.lstrip().lower().startswith(WRITING) and fault.due("sqlite", self.path):
                raise fault.sqlite_error()
            return super().execute(statement, *args)

        def executescript(self, script):
            if fault.due("sqlite", self.path):
                raise fault.sqlite_error()
            return super().executescript(script)

    def connect_(path, *args, **kwargs):
        found = connect(path, *args, factory=Connection, **kwargs)
        found.path = os.fspath(path)
        return found

    builtins.open = io.open = open_
    os.open, os.fsync, os.replace, os.rename = os_open_, fsync_, replace_, replace_
    os.sendfile = copying(os.sendfile, lambda args: args[0])
    os.copy_file_range = copying(os.copy_file_range, lambda args: args[1])
    sqlite3.connect = connect_


if "FAULT" in os.environ:
    install(Fault(os.environ["FAULT"]))
