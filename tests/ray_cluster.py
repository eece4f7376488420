"""A Ray cluster of two nodes on loopback, for tests: bounded, and gone at the end with all that it has started."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorabuild.ahead import cores
from lorabuild.executors import ray_node

MARK = "LORABUILD_TEST_CLUSTER"  # in the environment of every process of a cluster
HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # 127.0.0.1 Ray would replace by the machine's own address
START_SECONDS = 180  # five on a machine that has nothing else to do
OBJECT_STORE_BYTES = 80_000_000
PORTS = 100  # that one cluster takes
CPUS = max(1, cores() // 2)  # of a node, and of a job: as many threads as a local build has, since bytes depend on them
ROOT = Path(__file__).resolve().parents[1]


class Cluster:
    """`address`: of its head, for [executor.ray]. `environment`: for whoever talks to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        (folder / "tmp").mkdir()
        self.first = _free_ports()
        self.address = f"{HEAD}:{self.first}"
        self._guards: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "HOME": str(self.home),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",  # else there would be a token's file in HOME
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else 15: the tests beside would have all of the processor
        }

    def start(self, address: str, **more: str) -> None:
        """Start a node, which takes one job at a time: the head if it is HEAD."""
        first = self.first + (PORTS // 2 if address == OTHER else 0)
        where = [f"--port={first}", "--head"] if address == HEAD else [f"--address={self.address}"]
        names = ("node-manager-port", "object-manager-port", "dashboard-agent-grpc-port", "metrics-export-port")
        names += ("dashboard-agent-listen-port", "runtime-env-agent-port")
        ports = [f"--{name}={first + number}" for number, name in enumerate(names, 1)]
        ports += [f"--min-worker-port={first + 10}", f"--max-worker-port={first + PORTS // 2 - 1}"]
        if address == HEAD:
            ports += ["--include-dashboard=false"]
        bounds = [f"--num-cpus={CPUS}", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={address}"),
            *(*where, *ports, *bounds, "--disable-usage-stats", f"--temp-dir={self.folder / address[-1]}"),
        ]
        environment = {**os.environ, **self.environment, **more, MARK: f"{self.folder}@{address}"}
        with open(self.folder / f"{address}.log", "a") as log:
            begun = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._guards.append(ray_node.guard(begun.pid, self.folder))  # a killed pytest leaves no cluster behind
        assert begun.wait(START_SECONDS) == 0, (self.folder / f"{address}.log").read_text()

    def processes(self, address: str = "") -> dict[int, str]:
        """Of a node, or of the whole cluster: id -> command. What jobs have started is among them."""
        wanted = f"{MARK}={self.folder}@{address}".encode()
        found = {}
        for one in Path("/proc").iterdir():
            try:
                told = (one / "environ").read_bytes().split(b"\0") if one.name.isdigit() else []
                if any(text == wanted or (not address and text.startswith(wanted)) for text in told):
                    found[int(one.name)] = (one / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                pass  # it is gone, or somebody else's
        return found

    def kill(self, address: str = "") -> None:
        """As when a machine is switched off: nothing of it is left."""
        while processes := self.processes(address):  # what starts meanwhile is met the next time
            for number in processes:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.05)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Two nodes. Its folder has a short name: the paths of Ray's sockets may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="lbr-"))
    made = Cluster(folder)
    try:
        made.start(HEAD)
        made.start(OTHER)
        yield made
        assert not (made.home / ".ray").exists(), "Ray has left something in HOME"
    finally:
        made.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports() -> int:
    """The first of PORTS that nobody listens at; below those that the system gives to connections."""
    for number in range(90):
        first = 20000 + PORTS * ((os.getpid() + number) % 90)
        if all(_is_free(address, first + offset) for address in (HEAD, OTHER) for offset in range(PORTS)):
            return first
    raise AssertionError("no range of ports is free")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind((address, port))
        except OSError:
            return False
    return True
