"""The connection to a Ray cluster: `python -m lorabuild.executors.ray_link ADDRESS`, calls in and answers out as JSON lines.

A process of its own, because Ray ends the one that it is in when the cluster's head is gone, and takes over its signals.
It ends with its driver; the jobs are detached actors, which stay.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorabuild import __version__

NAMESPACE = "lorabuild"
REACH_SECONDS = 5.0
UNFIT_SECONDS = 60.0  # how long a job waits for a node that could take it, after the last such node has left
LOOK_SECONDS = 5.0  # between two looks at the nodes, for the sake of jobs that wait
FREE_SECONDS = 5.0  # the name of an actor that was ended is free within that
SHOWN = 4  # nodes in a message
SAID = 400  # letters of what Ray says

# Key of [executor], Ray's name, its unit in Ray's, how it is said.
DEMANDS = (
    ("gpus", "GPU", 1, lambda number: f"{number:g} GPU" + "s" * (number != 1)),
    ("cpus", "CPU", 1, lambda number: f"{number:g} CPU" + "s" * (number != 1)),
    ("memory_gb", "memory", 10**9, lambda number: f"{round(number, 1):g} GB of memory"),
)
Nodes = Mapping[str, Mapping[str, float]]  # address -> what the node has, in Ray's names and units


class Refused(Exception):
    """What no other try would mend, in one line."""


class Link:
    """The cluster at `address`. No call waits for a job: what is asked of its actor is fetched when the next call comes."""

    def __init__(self, address: str):
        self._ray = connected(address)
        self._cluster = f"Ray cluster {address}"
        self._actors: dict[str, Any] = {}
        self._over: set[str] = set()  # handles whose names may be free in a moment only
        self._asked: dict[str, Any] = {}  # handle -> the answer to come
        self._where: dict[str, str] = {}  # handle -> the node that it runs on, once it does
        self._unfit: dict[str, float] = {}  # handle -> since when no node could take it
        self._seen: tuple[float, Nodes] = (0.0, {})

    def submit(self, name: str, spec: str, resources: Mapping[str, float | None], command: Sequence[str]) -> str:
        """Begin a job; if there is one of this name, another driver's or an earlier one's of this, it is that one."""
        from lorabuild.executors.ray_node import RayJob

        demand = {key: resources[key] or 0 for key, *_ in DEMANDS}
        if line := missing(demand, self._nodes(0)):
            raise Refused(f"{self._cluster}: {line}")
        handle = named(name, demand)
        if handle in self._over:
            self._free(handle)
        job = self._ray.remote(RayJob)
        actor = job.options(
            name=handle,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=0,  # who submits counts the tries
            **{f"num_{ray.lower()}s": demand[key] for key, ray, *_ in DEMANDS[:2]},
            **({"memory": demand["memory_gb"] * 10**9} if demand["memory_gb"] else {}),
        )
        minutes = resources["minutes"] or 0
        self._actors[handle] = actor.remote(spec, list(command), int(demand["gpus"]), minutes, __version__)
        return handle

    def poll(self, handle: str, since: int) -> dict[str, Any]:
        """A Status as a table, and `log`, the end of its output, where there is one to tell."""
        errors = self._ray.exceptions
        try:
            if handle not in self._asked:
                self._asked[handle] = self._actor(handle).look.remote(since)
            if not self._ray.wait([self._asked[handle]], timeout=0)[0]:
                return self._silent(handle)
            told = self._ray.get(self._asked.pop(handle))
        except errors.ActorUnavailableError:
            return _status("running", f"{self._where.get(handle, 'its node')} does not answer")
        except ValueError:
            return _status("lost", "the cluster does not know it any more")
        except errors.RayActorError as error:
            return self._lost(handle, error)
        self._where[handle] = f"node {told['where']}"
        if told["over"]:
            self._end(handle)
        state = "running" if not told["over"] else "lost" if told["how"] else "ended"
        return {**_status(state, told["how"] or f"on {told['where']}"), "events": told["events"], "log": told["log"]}

    def cancel(self, handle: str) -> None:
        """SIGTERM to a worker that runs; a job that waits leaves the queue."""
        errors = self._ray.exceptions
        try:
            self._ray.get(self._actor(handle).stop.remote(), timeout=2)
        except errors.GetTimeoutError:
            self._end(handle)
        except (ValueError, errors.RayActorError):
            pass  # it is over

    def _actor(self, handle: str) -> Any:
        """Raises ValueError if there is none."""
        if handle not in self._actors:
            self._actors[handle] = self._ray.get_actor(handle, namespace=NAMESPACE)
        return self._actors[handle]

    def _silent(self, handle: str) -> dict[str, Any]:
        """It has not answered: it waits for its turn, or has just no time."""
        if handle in self._where:
            return _status("running", f"on {self._where[handle].removeprefix('node ')}")
        demand = demanded(handle)
        line = missing(demand, self._nodes(LOOK_SECONDS))
        if not line:
            self._unfit.pop(handle, None)
            return _status("waiting", f"for {said(demand)}")
        if time.monotonic() - self._unfit.setdefault(handle, time.monotonic()) < UNFIT_SECONDS:
            return _status("waiting", line)
        self._end(handle)
        return _status("lost", line)

    def _lost(self, handle: str, error: Exception) -> dict[str, Any]:
        where = self._where.get(handle, "")
        self._end(handle)
        if getattr(error, "actor_init_failed", False):  # lorabuild is not on that node, say
            raise Refused(f"{self._cluster}: no job can be begun: {str(error).strip().splitlines()[-1]}")
        print(f"{handle}: {error}", file=sys.stderr)
        if not where:
            return _status("lost", "its actor ended before it was heard of (see the log of Ray)")
        alive = where.removeprefix("node ") in self._nodes(0)
        return _status("lost", f"{where} is there, the job is not" if alive else f"{where} is gone")

    def _end(self, handle: str) -> None:
        """End the actor; what it holds of the node is free again."""
        actor = self._actors.pop(handle, None)
        for known in (self._asked, self._where, self._unfit):
            known.pop(handle, None)
        self._over.add(handle)
        if actor is not None:
            self._ray.kill(actor)

    def _free(self, handle: str) -> None:
        """Wait until nobody has this name."""
        self._over.remove(handle)
        until = time.monotonic() + FREE_SECONDS
        try:
            while time.monotonic() < until:
                self._ray.get_actor(handle, namespace=NAMESPACE)
                time.sleep(0.05)
        except ValueError:
            pass  # that is how it says so

    def _nodes(self, age: float) -> Nodes:
        """The nodes that are alive, as of `age` seconds ago at most."""
        when, nodes = self._seen
        if not nodes or time.monotonic() - when >= age:
            alive = [node for node in self._ray.nodes() if node["Alive"]]
            nodes = {node["NodeManagerAddress"]: node["Resources"] for node in alive}
            self._seen = time.monotonic(), nodes
        return nodes


def connected(address: str) -> Any:
    """The module `ray`, connected to the cluster at "HOST:PORT" or "auto", of which this machine is a node. Raises Refused."""
    try:
        import ray
    except ImportError:
        raise Refused("[executor] kind is ray, which is not installed: pip install 'lorabuild[ray]'") from None
    if address != "auto":
        _reach(address)
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # no cluster on this machine ("auto"); other versions of Ray or Python; another token
        raise Refused(f"[executor.ray] address {address!r}: {' '.join(str(error).split())[:SAID]}") from None
    return ray


def missing(demand: Mapping[str, float], nodes: Nodes) -> str:
    """Why no single node could ever take a job of this demand, in one line; "" if one can."""
    if any(_lacks(demand, node) == [] for node in nodes.values()):
        return ""
    never = [key for key in demand if all(key in _lacks(demand, node) for node in nodes.values())]
    asked = {key: demand[key] for key in never or demand if demand[key]}
    there = [f"{address} ({said(_has(node), zeros=True)})" for address, node in sorted(nodes.items())]
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    ask = "asks for" if len(asked) == 1 else "ask for" if never else "ask for at once"
    keys = ", ".join(asked)
    return f"no node has {said(asked)}, as [executor] {keys} {ask}; its nodes: {', '.join(there[:SHOWN])}{more}"


def said(amounts: Mapping[str, float], zeros: bool = False) -> str:
    """`1 GPU, 4 CPUs, 24 GB of memory`."""
    return ", ".join(say(amounts[key]) for key, _, _, say in DEMANDS if key in amounts and (amounts[key] or zeros))


def named(name: str, demand: Mapping[str, float]) -> str:
    """A handle: it tells who polls it later what the job waits for."""
    return "/".join([name, *(f"{demand[key]:g}" for key, *_ in DEMANDS)])


def demanded(handle: str) -> dict[str, float]:
    return {key: float(text) for (key, *_), text in zip(DEMANDS, handle.split("/")[-3:], strict=True)}


def _has(node: Mapping[str, float]) -> dict[str, float]:
    return {key: node.get(ray, 0) / unit for key, ray, unit, _ in DEMANDS}


def _lacks(demand: Mapping[str, float], node: Mapping[str, float]) -> list[str]:
    has = _has(node)
    return [key for key in demand if demand[key] > has[key]]


def _status(state: str, text: str) -> dict[str, Any]:
    return {"state": state, "events": [], "text": text, "log": ""}


def _reach(address: str) -> None:
    """Ray itself tries for 40 s, and then ends the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Refused(f"no Ray cluster at {address}: {why} ([executor.ray] address)") from None


def main() -> None:
    """Serve until the driver is gone."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print there
    link: Link | None = None

    def answer(call: Callable[[], Any]) -> None:
        try:
            reply = {"said": call()}
        except Refused as refusal:
            reply = {"refused": str(refusal)}
        except Exception as error:
            reply = {"refused": f"Ray: {type(error).__name__}: {' '.join(str(error).split())[:SAID]}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    def connect() -> None:
        nonlocal link
        link = Link(sys.argv[1])

    answer(connect)
    for line in sys.stdin:
        call = json.loads(line)
        answer(lambda call=call: getattr(link, call["call"])(**call["with"]))


if __name__ == "__main__":
    main()
