"""Open the executor that [executor] names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.errors import JobError
from lorabuild.executors.protocol import Executor
from lorabuild.stage import Stage
from lorabuild.state import State
from lorabuild.store import Store
from lorabuild.workers.pool import Pool

if TYPE_CHECKING:
    from lorabuild.executors.away import Away

LOCAL = "local"
MODULES = {"slurm": "lorabuild.executors.slurm", "ray": "lorabuild.executors.rays"}
PACKAGES = {"slurm": "submitit", "ray": "ray"}  # what their extras install


def away_of(
    settings: Mapping[str, Any],
    url: str | None,
    root: Path,
    stages: Mapping[str, Stage],
    store: Store,
    state: State,
    pool: Pool,
    model_dirs: Sequence[Path],
    warn: Callable[[str], None],
) -> Away | None:
    """What builds on other machines; None where all is built here. Nothing is opened yet, and no extra imported."""
    if (kind := settings.get("kind", LOCAL)) == LOCAL or not url:
        return None
    from lorabuild.executors.away import Away
    from lorabuild.executors.handles import Handles
    from lorabuild.executors.needs import Needs
    from lorabuild.executors.sending import Sender
    from lorabuild.remotes.patient import PatientFolder
    from lorabuild.remotes.remote import Remote

    hidden = root / ".lorabuild"
    folder = PatientFolder(url, warn, lambda: away.left)
    remote = Remote(folder, store)
    away = Away(
        open=lambda: _opened(kind, settings, root),
        kind=kind,
        needs=Needs(settings, stages, url),
        remote=remote,
        sender=Sender(remote, state, bool(settings.get("models")), model_dirs),
        handles=Handles(hidden / "jobs", store.parts),
        logs=hidden / "logs",
        kept_logs=pool.logs,
        begins_no_more=lambda: pool.slots.shut,
    )
    return away


def _opened(kind: str, settings: Mapping[str, Any], root: Path) -> Executor:
    """Raises JobError where its extra is not installed: before anything is uploaded for it."""
    if find_spec(PACKAGES[kind]) is None:
        raise JobError(f"[executor] kind = \"{kind}\" needs {PACKAGES[kind]}: pip install 'lorabuild[{kind}]'")
    return import_module(MODULES[kind]).executor(settings, root)
