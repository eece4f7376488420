"""Do one job away from its driver: `python -m lorabuild.worker SPEC.json`, events to stdout, files through the store.

Exit codes: 0 done, 1 failed, 75 stopped, or without the store for long: another try is worth it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from lorabuild.ahead import cores
from lorabuild.errors import JobError, UserError, told
from lorabuild.executors.protocol import AGAIN, DONE, FAILED
from lorabuild.executors.spec import STATE_SECONDS, check
from lorabuild.remotes.patient import PatientFolder
from lorabuild.remotes.remote import Damaged, Remote
from lorabuild.remotes.transport import Refused, Unreachable
from lorabuild.store import Output, Record, Store
from lorabuild.workers.fetch import Fetcher, Lacking
from lorabuild.workers.running import prepare, run
from lorabuild.workers.slots import cuda_devices
from lorabuild.workers.travel import Travelling

CODES = {"done": DONE, "stopped": AGAIN}
STOPS = (signal.SIGTERM, signal.SIGINT)
OLD_SECONDS = 24 * 3600.0  # what a killed worker was writing is nobody's by then
Event = Mapping[str, Any]


class ErrandLine:
    """Events to standard output, a JSON object a line; what libraries print goes to standard error, the job's log.

    `saved` is called before it is told of an output. `leave` is called, and the process ends, when it is to stop and
    nothing in it asks: else what asks is given the time to keep what it has.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._events = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._mutex = threading.Lock()
        self._stop = self._asks = False
        self.saved: Callable[[Event], None] = lambda event: None
        self.leave: Callable[[], Event] = lambda: {"event": "stopped", "kept": ""}
        # Python writes a signal's number to it, whatever the main thread is at
        inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        for one in STOPS:
            signal.signal(one, lambda number, frame: None)
        threading.Thread(target=self._wait_for_signal, args=(inbox,), daemon=True).start()

    def send(self, event: Event) -> None:
        if event["event"] == "saved":
            self.saved(event)
        self._write(event)

    def receive(self) -> None:
        """What was saved is on record: there is nobody to be waited for."""

    def stopping(self) -> bool:
        self._asks = True
        return self._stop

    @property
    def told_to_stop(self) -> bool:
        """The same for who has nothing to keep."""
        return self._stop

    def _write(self, event: Event) -> None:
        with self._mutex:
            try:
                self._events.write(json.dumps(event) + "\n")
                self._events.flush()
            except OSError:
                pass  # nobody listens: what is made goes to the store all the same

    def _wait_for_signal(self, inbox: socket.socket) -> None:
        while int.from_bytes(inbox.recv(1)) not in STOPS:  # a child of the stage has ended, say
            pass
        self._stop = True
        if not self._asks:
            self._write(self.leave())
            os._exit(AGAIN)


def main(arguments: Sequence[str]) -> int:
    """Do the job of the file that is named; returns the exit code."""
    from lorabuild.stages import STAGES

    line = ErrandLine()
    try:
        spec = json.loads(Path(arguments[0]).read_bytes())
        check(spec, STAGES)
        last = Errand(spec, line).done()
    except UserError as error:
        last = {"event": "failed", "lines": [str(problem) for problem in error.problems]}
    except OSError as error:
        traceback.print_exc()
        last = {"event": "failed", "lines": [f"{told(error)} (on {socket.gethostname()})"]}
    except Exception as error:
        traceback.print_exc()
        last = {"event": "crashed", "message": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    line.send(last)
    return CODES.get(last["event"], FAILED)


@dataclass
class Errand:
    """One job on this node."""

    spec: Mapping[str, Any]
    line: ErrandLine
    _outputs: dict[str, Output] = field(default_factory=dict)
    _start: float = field(default_factory=time.monotonic)

    def done(self) -> Event:
        """Fetch, build, push, and put the record last; if it is there already, nothing but say so. The last event.

        Raises JobError.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{self.folder}.errand"):  # the same job may have been begun here once more
                return self._done()
        except Lacking as lacking:
            if not self.remote.folder.exists():
                said = f"{self.spec['store']}: there is nothing at all, seen from {socket.gethostname()}: is it the same folder?"
                raise JobError(said) from None
            self.line.send({"event": "lacking", "digests": lacking.digests})
            return {"event": "stopped", "kept": "", "why": str(lacking)}
        except Damaged as error:  # written here a moment ago
            raise JobError(f"{error} (on {socket.gethostname()})") from None
        except Refused as error:
            raise JobError(f"{self.spec['store']}: {error} (on {socket.gethostname()})") from None
        except Unreachable as error:
            return {"event": "stopped", "kept": "", "why": f"{self.spec['store']}: {error}"}

    def _done(self) -> Event:
        spec = self.spec
        have, record = self._there()
        rest = bool(record or spec["options"].get("have_rest"))
        if rest and have.issuperset(spec["snapshots"]):
            return {"event": "done", "pieces": [], "notes": {}, "made_with": dict(record.made_with) if record else {}}
        print(f"{spec['name']} on {socket.gethostname()}, process {os.getpid()}", flush=True)
        _clear_parts(self.store.parts)
        inputs = Fetcher(spec, self.remote, self.cache, self.folder, self._progress).inputs()
        local = self._local(inputs, have, rest)
        self.state.take_up()
        self.line.saved, self.line.leave = self._saved, self._leave
        self._start = time.monotonic()
        with self.state.going_along():
            prepare(local)
            last = run(local, self.line)
        if last["event"] == "stopped":
            self.state.save()
        if last["event"] == "done":
            if not rest:
                self._record(spec["record"], self._outputs, last["made_with"])
            self.state.forget()
            shutil.rmtree(self.folder, ignore_errors=True)
            Path(f"{self.folder}.lock").unlink(missing_ok=True)
        return last

    @cached_property
    def cache(self) -> Path:
        named = self.spec["cache"] or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lorabuild", "node")
        return Path(os.path.abspath(os.path.expanduser(named)))

    @cached_property
    def store(self) -> Store:
        return Store(self.cache / "store")

    @cached_property
    def folder(self) -> Path:
        return self.cache / "scratch" / self.spec["record"].replace("/", ".")

    @cached_property
    def remote(self) -> Remote:
        warn: Callable[[str], None] = lambda text: self.line.send({"event": "warn", "text": text})  # noqa: E731
        return Remote(PatientFolder(self.spec["store"], warn, lambda: self.line.told_to_stop), self.store, few=True)

    @cached_property
    def state(self) -> Travelling:
        seconds = self.spec.get("state_seconds", STATE_SECONDS)
        return Travelling(self.remote.folder, self.spec["record"], self.folder, seconds)

    def _there(self) -> tuple[set[str], Record | None]:
        """The snapshots that are on record already, here told once more, and the job's own record."""
        have, key = set(self.spec["options"].get("have_steps", ())), self.spec["record"]
        for role in self.spec["snapshots"]:
            if role not in have and (record := self._readable(f"{key}/{role}")):
                have.add(role)
                self.line.send({"event": "saved", "role": role, **vars(record.outputs[role])})
        return have, self._readable(key)

    def _readable(self, key: str) -> Record | None:
        """The record of `key`. What is damaged is made again."""
        try:
            shared = self.remote.record(key)
        except Damaged as error:
            print(error)
            return None
        return shared.record if shared else None

    def _local(self, inputs: Mapping[str, Any], have: set[str], rest: bool) -> dict[str, Any]:
        """The spec as a worker beside its driver would get it."""
        spec = self.spec
        devices = cuda_devices()
        if spec["gpus"] and not devices:
            raise JobError(f"no GPU on {socket.gethostname()}, and [executor] gpus promises {spec['gpus']}")
        count = min(spec["options"].get("processes", 1), len(devices)) if spec["gpus"] else 1
        threads = min(spec["threads"], cores())
        if threads < spec["threads"]:  # more would wait for each other, and for ever so long
            self.line.send(
                {
                    "event": "warn",
                    "text": f"{socket.gethostname()} has {threads} cores for its {spec['threads']} threads",
                }
            )
        options = {
            **spec["options"],
            "have_steps": [role for role in spec["snapshots"] if role in have],
            "have_rest": rest,
            "processes": count,
            "device": "cuda" if spec["gpus"] else "cpu",
            "compiled": str(self.cache / "compiled"),
        }
        return {
            **{name: spec[name] for name in ("name", "run", "params", "outputs", "snapshots", "anew")},
            "threads": threads,
            "options": options,
            "inputs": inputs,
            "store": str(self.store.root),
            "folder": str(self.folder),
            "device": None if spec["gpus"] or not devices else "",  # which GPUs it sees, the scheduler has said
            "base": {},
        }

    def _progress(self, done: int, total: int, text: str) -> None:
        self.line.send({"event": "progress", "done": done, "total": total, "text": text})

    def _saved(self, event: Event) -> None:
        """A snapshot is pushed before it is told of, as a state that is saved from now on counts on it."""
        role, output = event["role"], Output(event["digest"], event["size"])
        if role in self.spec["snapshots"]:
            self._record(f"{self.spec['record']}/{role}", {role: output}, {})
        else:
            self._outputs[role] = output

    def _record(self, key: str, outputs: Mapping[str, Output], made_with: Mapping[str, str]) -> None:
        """Push what is made under `key`: blobs first, the record last. Raises Unreachable."""
        spec = self.spec
        digests = {role: one["digest"] for role, one in spec["inputs"].items()}
        seconds = round(time.monotonic() - self._start, 3)
        head = spec["stage"], spec["version"], spec["params"], digests
        self.store.put_record(key, Record(*head, outputs, (), seconds, made_with, spec["made_from"]))
        self.remote.put(key, spec["metadata"])

    def _leave(self) -> Event:
        """It is to stop, and asks nobody: what lies in scratch is all there is."""
        try:
            self.state.save()
        except (Unreachable, OSError) as error:
            print(error)
        return {"event": "stopped", "kept": ""}


def _clear_parts(parts: Path) -> None:
    for path in parts.iterdir() if parts.is_dir() else ():
        try:
            if time.time() - path.stat().st_mtime > OLD_SECONDS:
                path.unlink()
        except OSError:  # gone by now
            pass
