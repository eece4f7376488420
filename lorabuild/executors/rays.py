"""Run jobs on a Ray cluster: each is an actor, which goes on when the driver leaves, and which a later driver finds by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError
from lorabuild.executors.protocol import Resources, Status
from lorabuild.hashing import digest_bytes

CONNECT_SECONDS = 30.0  # Ray takes one; 40 to 60 where no Ray listens, or this machine is no node
PAUSE_SECONDS = 0.2
POLL_SECONDS = 1.0


def executor(settings: Mapping[str, Any], root: Path) -> Rays:
    """Of [executor] in lorabuild.toml. Opens nothing yet."""
    address = (settings.get("ray") or {}).get("address") or "auto"
    return Rays(address, root / ".lorabuild" / "logs" / "ray.log")


class Rays:
    """The cluster at `address`: "HOST:PORT" of its head, or "auto", that of which this machine is a node.

    `log`: what Ray itself has to say. `command`: what runs on a node, instead of its own `python -m lorabuild.worker`.
    """

    def __init__(self, address: str, log: Path, command: Sequence[str] = ()):
        self._address, self._log, self._command = address, log, command
        self._link: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()
        self._told: dict[str, int] = {}  # handle -> how many events were passed on
        self._tails: dict[str, str] = {}  # handle -> the end of its log

    def submit(self, spec: Mapping[str, Any], resources: Resources) -> str:
        store = digest_bytes(spec["store"].encode())[:8]  # the same may be built for several
        handle = self._ask(
            "submit",
            name=f"{spec['stage']}/{spec['record']}/{store}",
            spec=json.dumps(spec),
            resources=asdict(resources),
            command=list(self._command),
        )
        self._told.pop(handle, None)
        self._tails.pop(handle, None)
        return handle

    def poll(self, handle: str) -> Status:
        until = time.monotonic() + POLL_SECONDS
        while True:
            told = self._ask("poll", handle=handle, since=self._told.get(handle, 0))
            self._told[handle] = self._told.get(handle, 0) + len(told["events"])
            self._tails[handle] = told["log"] or self._tails.get(handle, "")
            if told["events"] or told["state"] in ("ended", "lost") or time.monotonic() > until:
                return Status(told["state"], told["events"], told["text"])
            time.sleep(PAUSE_SECONDS)

    def cancel(self, handle: str) -> None:
        self._ask("cancel", handle=handle)

    def logs(self, handle: str) -> str:
        """As of the last poll: the node that wrote it may be gone."""
        return self._tails.get(handle, "")

    def _ask(self, call: str, **arguments: Any) -> Any:
        """Ray's answer. A connection that broke is made anew, once: each call may be made twice without harm."""
        with self._turn:
            for _ in range(2):
                if self._link is None:
                    self._link = self._connect()
                if reply := _exchange(self._link, {"call": call, "with": arguments}):
                    return _said(reply)
                self._end_link()
        raise JobError(f"Ray cluster {self._address}: the connection broke twice (see {self._log})")

    def _connect(self) -> subprocess.Popen[str]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "a") as log:
            link = subprocess.Popen(
                [sys.executable, "-m", "lorabuild.executors.ray_link", self._address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
                start_new_session=True,  # Ctrl-C is the driver's
            )
        late = threading.Timer(CONNECT_SECONDS, link.kill)
        late.start()
        reply = _exchange(link)
        late.cancel()
        if "said" in reply:
            return link
        link.kill()
        if reply:
            return _said(reply)  # raises
        raise JobError(
            f"Ray cluster {self._address}: no answer. Is it one, and this machine a node of it? "
            f"`ray start --address={self._address} --num-cpus=0` makes it one that takes no jobs (see {self._log})"
        )

    def _end_link(self) -> None:
        if self._link:
            self._link.kill()
            self._link.wait()
            self._link = None


def _exchange(link: subprocess.Popen[str], call: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Its answer; nothing if it is gone."""
    assert link.stdin is not None and link.stdout is not None
    try:
        if call:
            link.stdin.write(json.dumps(call) + "\n")
            link.stdin.flush()
        line = link.stdout.readline()
    except (BrokenPipeError, ValueError):
        return {}
    return json.loads(line) if line.endswith("\n") else {}


def _said(reply: Mapping[str, Any]) -> Any:
    if "refused" in reply:
        raise JobError(reply["refused"])
    return reply["said"]
