"""What `lorabuild show` says of each LoRA file of a project; a file is hashed once, however many sections ask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorabuild.errors import UserError
from lorabuild.report.files import ProjectFiles
from lorabuild.verbs.common import header_of
from lorabuild.verbs.show import facts

SHOWN = ("source", "trained", "resized", "chopped")
MAKERS = {"trained": "train", "resized": "resize", "chopped": "chop"}  # role -> stage


def artifacts(files: ProjectFiles) -> Iterator[tuple[ProjectFiles, str, Path]]:
    """(project or variant, role, file) of the LoRAs that stand: first the project's, then what its variants by hand add."""
    seen: set[Path] = set()
    for owner in (files, *files.named.values()):
        for role in SHOWN:
            if (path := owner.path(role)) is not None and path not in seen:
                seen.add(path)
                yield owner, role, path


def facts_of(path: Path) -> dict[str, Any]:
    """The object of `lorabuild show --json`, or {"fault": one line} for a file that cannot be read."""
    try:
        stat = path.stat()
        return _facts(path, stat.st_size, stat.st_mtime_ns)
    except UserError as error:
        return {"fault": "; ".join(map(str, error.problems)).replace(f"{path.parent}{os.sep}", "")}
    except OSError as error:
        return {"fault": f"{path.name}: {error.strerror}"}


@lru_cache(maxsize=64)
def _facts(path: Path, size: int, mtime_ns: int) -> dict[str, Any]:
    return facts(path, header_of(path))
