"""Work on a job beside its first process: `python -m lorabuild.rank`, told by one line of JSON, gone when that is."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabuild.ahead import use_threads
from lorabuild.errors import UserError
from lorabuild.stage import Job
from lorabuild.workspace import Workspace


def main() -> None:
    """Run the job. What it comes to say is one line, an error's; all else that is printed goes where errors go."""
    spec = json.loads(sys.stdin.readline())
    for one in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # a cluster tells all processes of a job; the first decides what becomes of them
        signal.signal(one, signal.SIG_IGN)
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    use_threads(spec["threads"])
    try:
        with tempfile.TemporaryDirectory(prefix="rank-", dir=spec["scratch"]) as folder:
            _run(spec, Path(folder))
    except UserError as error:
        print(error, file=said, flush=True)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        print(f"process {spec['options']['rank'] + 1}: {type(error).__name__}: {first}", file=said, flush=True)
        sys.exit(1)


def _run(spec: Mapping[str, Any], folder: Path) -> None:
    """What it writes is of no use to anybody and goes with the folder."""
    workspace = Workspace(
        staging=folder,
        scratch=Path(spec["scratch"]),
        pieces=folder / "pieces",
        paths={role: Path(path) for role, path in spec["paths"].items()},
        digests=spec["digests"],
    )
    job = Job(spec["name"], spec["params"], {}, spec["outputs"], spec["snapshots"], spec["options"])
    importlib.import_module(spec["run"]).run(job, workspace, lambda done, total, text: None)


def _end_with_the_first() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
