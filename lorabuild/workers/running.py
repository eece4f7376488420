"""Run one job in this process: its world, its stage, and how it came to its end."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from lorabuild import __version__
from lorabuild.ahead import use_threads
from lorabuild.errors import InputChanged, Interrupted, UserError, naming, told
from lorabuild.files import empty_folder
from lorabuild.remotes.transport import Unreachable
from lorabuild.stage import Job, declared
from lorabuild.store import Store
from lorabuild.workspace import ImageFile, Workspace, staged_roles


class Line(Protocol):
    """To who has given the job: `lorabuild.workers.channel` to a driver of this machine."""

    def send(self, event: Mapping[str, Any]) -> None: ...

    def receive(self) -> Any:
        """The answer to a snapshot: it is on record."""

    def stopping(self) -> bool: ...


def prepare(spec: Mapping[str, Any]) -> None:
    """Whatever ran here before, and whether anything did, a job begins in the same world."""
    print(f"{spec['name']}: process {os.getpid()}, threads {spec['threads']}, device {spec['device']}")
    use_threads(spec["threads"])  # a stage imports the libraries in its `run`
    if spec["device"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = spec["device"]
    if module := sys.modules.get("lorabuild.nn.warm"):
        module.make_way(spec["base"])
    if "torch" in sys.modules:
        from lorabuild.nn.neutral import neutral

        neutral(spec["threads"])


def held() -> dict[str, int]:
    """Digest of each network that this process has in memory -> bytes."""
    module = sys.modules.get("lorabuild.nn.warm")
    return module.held() if module else {}


def run(spec: Mapping[str, Any], channel: Line) -> dict[str, Any]:
    """Run one job; the last event says how it ended."""
    folder = Path(spec["folder"])
    try:
        with naming(folder):
            return _run_locked(spec, channel)
    except InputChanged as change:
        return {"event": "changed", "path": str(change.path)}
    except Interrupted as stop:
        return {"event": "stopped", "kept": stop.kept}
    except Unreachable as error:  # of a job away from its driver, which shares what it makes at once
        return {"event": "stopped", "kept": "", "why": str(error)}
    except UserError as error:
        return {"event": "failed", "lines": [str(problem) for problem in error.problems]}
    except OSError as error:  # disk full, unreadable, I/O error: the machine's fault, told in one line
        traceback.print_exc()
        return {"event": "failed", "lines": [told(error, folder.parents[2])]}
    except Exception as error:
        traceback.print_exc()
        return {
            "event": "crashed",
            "message": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        }


def _run_locked(spec: Mapping[str, Any], channel: Line) -> dict[str, Any]:
    folder = Path(spec["folder"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # an orphan of a killed run may still be at it for a moment
        store = Store(Path(spec["store"]))
        workspace = _workspace(spec, folder, store, channel)
        job = Job(spec["name"], spec["params"], {}, spec["outputs"], spec["snapshots"], spec["options"])
        module, _, function = spec["run"].partition(":")
        work = getattr(importlib.import_module(module), function)

        def progress(done: int, total: int, text: str) -> None:
            channel.send({"event": "progress", "done": done, "total": total, "text": text})

        work(job, workspace, progress)
        for role in staged_roles(workspace.staging):
            workspace.saved(role)
    return {
        "event": "done",
        "pieces": sorted(set(workspace.used_pieces)),
        "notes": workspace.notes,
        "made_with": _made_with(),
    }


def _workspace(spec: Mapping[str, Any], folder: Path, store: Store, channel: Line) -> Workspace:
    inputs = spec["inputs"]

    def saved(role: str, path: Path) -> Path:
        if not declared(role, (*spec["outputs"], *spec["snapshots"])):
            raise RuntimeError(f"{spec['name']} wrote {role}, which it does not declare")
        output = store.put(path)
        channel.send({"event": "saved", "role": role, "digest": output.digest, "size": output.size})
        channel.receive()  # the driver has it on record: a state that is saved from now on may count on it
        return store.blob(output.digest)

    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return Workspace(
        staging=empty_folder(folder / "staging"),
        scratch=scratch,
        pieces=store.pieces,
        paths={role: Path(one["path"]) for role, one in inputs.items() if one["path"]},
        digests={role: one["digest"] for role, one in inputs.items()},
        images={role: [_image(image) for image in one["images"]] for role, one in inputs.items()},
        on_saved=saved,
        warn=lambda text: channel.send({"event": "warn", "text": text}),
        anew=spec["anew"],
        stopping=channel.stopping,
    )


def _image(fields: Mapping[str, Any]) -> ImageFile:
    caption = Path(fields["caption"]) if fields["caption"] else None
    return ImageFile(**{**fields, "path": Path(fields["path"]), "caption": caption})


def _made_with() -> dict[str, str]:
    """Versions and device: they stand in the record and are never in a key."""
    found = {"lorabuild": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "diffusers", "transformers", "lycoris"):
        if module := sys.modules.get(name):
            found[name] = str(getattr(module, "__version__", "unknown"))
    if "torch" in sys.modules:
        import torch

        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        found["threads"] = str(torch.get_num_threads())
    return found
