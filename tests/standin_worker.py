"""Stands in for `python -m lorabuild.worker SPEC.json`: says what the spec tells it to say, and does as it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time


def main() -> None:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    signal.signal(signal.SIGTERM, lambda *_: (say(event="stopped", kept="step 3"), os._exit(75)))
    print("Loading weights, says a library")
    print("on the side", file=sys.stderr, flush=True)
    say(event="progress", done=1, total=2, text="pid", pid=os.getpid(), **told())
    for step in spec["steps"]:
        match step:
            case "child":  # one that does not end by itself, and holds our output open
                say(event="warn", text=str(subprocess.Popen(["sleep", "600"], start_new_session=False).pid))
            case "deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                say(event="warn", text="deaf")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "slow exit":
                say(event="done", pieces=[], notes={}, made_with={})
                time.sleep(600)
            case "fail":
                say(event="failed", lines=["no such thing"])
                sys.exit(1)
            case str(path):
                while not os.path.exists(path):
                    time.sleep(0.02)
    say(event="done", pieces=[], notes={}, made_with={})


def told() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "LORABUILD_TEST_CLUSTER")}


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
