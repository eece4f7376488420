"""The machine: Python, processor, memory, git."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

from lorabuild import __version__
from lorabuild.ahead import cores
from lorabuild.doctor.line import Line, gigabytes, ok, warn
from lorabuild.memory import available_bytes

LITTLE_RAM = 8e9  # a job holds up to 1.2 times its base's file (7 GB for SDXL in half precision)


def look_at_python() -> Iterator[Line]:
    yield ok(
        "python", f"{platform.python_version()} ({sys.executable}), lorabuild {__version__}, {platform.platform()}"
    )


def look_at_processor() -> Iterator[Line]:
    """Cores and memory that a job may take."""
    count, free, total = cores(), available_bytes(), _all_bytes()
    said = f"{count} core{'s' * (count != 1)}"
    if free is None:
        yield ok("processor", f"{said}; free memory is not told by this system")
        return
    said += f", {gigabytes(free)} of memory free" + (f" of {gigabytes(total)}" if total else "")
    if free < LITTLE_RAM:
        yield warn("processor", said, "an SDXL base alone has 7 GB: end other programs, or add memory; `tiny` fits")
    else:
        yield ok("processor", said)


def look_at_git() -> Iterator[Line]:
    command = shutil.which("git")
    if command is None:
        yield warn("git", "not installed", "install git: `diff` between commits, and `gc`, ask it")
        return
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=20)
    yield ok("git", done.stdout.strip().removeprefix("git version ") or "there")


def _all_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
