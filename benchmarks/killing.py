"""Kill builds at random moments and see that nothing that was finished is lost: what bench_kills.py and the tests share."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lorabuild.hashing import digest_file

HERE = Path(__file__).resolve().parent
WHO = ("all", "driver", "workers")  # who is killed: the driver and its workers, the driver alone, its workers alone
PAUSE = "0.004"  # seconds that each output of a stand-in stays half-written
STARTING = 0.25  # seconds in which Python starts, and a kill would show nothing
EARLY = 0.6  # part of an undisturbed build in which kills fall: each build has less to do than the one before

DODO = """\
from standins import install, paced

install("base", "norms", "dataset", "latents", "train", "spectrum", "resize", run=paced)
from lorabuild.graph import DOIT_CONFIG, task_lorabuild
"""
MANIFEST = """\
[project]
base = "tiny"

[[dataset.subset]]
image_dir = "../../images"

[recipe]
network_dim = 4
max_train_steps = 4
save_every_n_steps = 2
seed = {seed}

[resize]
fro_ckpt = 1
thr = -3

[chop]
keep = ["TE", "OUT01"]
"""
SEEDS = {"ember": 1, "moss": 2, "twin": 1}  # ember and twin have equal keys: what one builds the other restores


@dataclass
class Golden:
    """An undisturbed build: its files, the keys of its jobs, and how long it took."""

    files: dict[str, bytes]
    keys: dict[str, str]
    seconds: float
    locks: dict[str, str]


@dataclass
class Tally:
    """What the kills came to."""

    kills: int = 0
    builds: int = 0
    finished: int = 0  # jobs that were finished when a build was killed
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.kills += other.kills
        self.builds += other.builds
        self.finished += other.finished
        self.problems += other.problems

    def __str__(self) -> str:
        found = "; ".join(self.problems) or "none lost, none built twice, no partial file, final bytes equal"
        return f"{self.kills} kills in {self.builds} builds, {self.finished} finished jobs at them: {found}"


def make(root: Path) -> Path:
    """A repository of three small projects whose long stages are stand-ins."""
    (root / "images").mkdir(parents=True)
    (root / "dodo.py").write_text(DODO)
    said = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["doit"]["plugins"]["command"]
    (root / "doit.cfg").write_text("[COMMAND]\n" + "".join(f"{name} = {place}\n" for name, place in said.items()))
    (root / "images/1.png").write_bytes(b"1")
    (root / "images/1.txt").write_text("ember")
    for name, seed in SEEDS.items():
        (root / "projects" / name).mkdir(parents=True)
        (root / "projects" / name / "lora.toml").write_text(MANIFEST.format(seed=seed))
    return root


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "STANDIN_SECONDS": PAUSE} | more


def start(root: Path, *args: str, **more: str) -> subprocess.Popen:
    """A build, in a session of its own."""
    command = [sys.executable, "-m", "doit", *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=root, env=environment(**more), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def undisturbed(root: Path) -> Golden:
    began = time.monotonic()
    process = start(make(root))
    out, err = process.communicate()
    if process.returncode or err:
        raise RuntimeError(out + err)
    return Golden(built_files(root), keys(root), time.monotonic() - began, locks(root))


def kill_builds(root: Path, golden: Golden, chance: random.Random, kills: int) -> Tally:
    """Kill up to `kills` builds of one repository, one after the other, and let the last one run to its end."""
    tally, finished, records = Tally(), set[str](), dict[Path, tuple]()
    make(root)
    for _ in range(kills):
        log = latest(root)
        process = start(root, "-n", chance.choice("12"))
        tally.builds += 1
        try:
            process.communicate(timeout=STARTING + EARLY * chance.random() * golden.seconds)
        except subprocess.TimeoutExpired:
            tally.kills += 1
            kill(process, who := chance.choice(WHO))
            out, err = process.communicate()
            if "Traceback" in err and who == "workers":
                tally.problems.append(f"a killed worker is told by a traceback: {err[-300:]}")
        built = events(root, "built", log)
        tally.problems += [f"{job} was finished and is built again" for job in finished & built]
        tally.problems += partial(root, golden) + rewritten(records)
        records = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in records_of(root)}
        finished |= built | {job for job, key in golden.keys.items() if record_path(root, key) in records}
        tally.finished += len(finished)
        if process.returncode == 0:
            break
    log = latest(root)
    end = start(root, "-n", "2")
    out, err = end.communicate()
    tally.builds += 1
    if end.returncode or err:
        tally.problems.append(f"the last build ended with {end.returncode}: {out}{err}")
    tally.problems += [f"{job} was finished and is built again" for job in finished & events(root, "built", log)]
    tally.problems += partial(root, golden) + rewritten(records)
    if built_files(root).keys() != golden.files.keys():
        tally.problems.append(f"files differ: {sorted(built_files(root).keys() ^ golden.files.keys())}")
    if locks(root) != golden.locks:
        tally.problems.append("lock files differ")
    if left := sorted(path.name for path in (root / ".lorabuild/scratch").iterdir()):
        tally.problems.append(f"scratch is left: {left}")
    return tally


def kill(process: subprocess.Popen, who: str) -> None:
    """SIGKILL. Workers are in groups of their own."""
    workers = children(process.pid)
    if who != "workers":
        os.kill(process.pid, signal.SIGKILL)
    if who != "driver":
        for worker in workers:
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def partial(root: Path, golden: Golden) -> list[str]:
    """What is not whole: a blob whose name is not its digest, a record without its blobs, a file in build/ of other bytes."""
    store = root / ".lorabuild/store"
    problems = [f"blob {path.name} is damaged" for path in files_in(store / "blob") if digest_file(path) != path.name]
    for path in records_of(root):
        try:
            outputs = json.loads(path.read_text())["outputs"].values()
        except (ValueError, KeyError) as error:
            problems.append(f"record {path.name} is no record: {error}")
            continue
        blobs = [store / "blob" / one["digest"][:2] / one["digest"] for one in outputs]
        problems += [f"record {path.name} names a blob that is not there" for blob in blobs if not blob.exists()]
    for name, text in locks(root).items():
        try:
            tomllib.loads(text)
        except ValueError as error:
            problems.append(f"{name} is no lock file: {error}")
    stand = built_files(root)
    return problems + [f"{name} is not whole" for name, data in stand.items() if golden.files.get(name) != data]


def rewritten(records: dict[Path, tuple]) -> list[str]:
    """Records that stood at a kill and are no longer as they were."""
    same = {path for path in records if path.exists()}
    same = {path for path in same if records[path] == (path.stat().st_mtime_ns, path.read_bytes())}
    return [f"record {path.name} was lost or made again" for path in records.keys() - same]


def built_files(root: Path) -> dict[str, bytes]:
    """What stands in build/ and of the base, by relative name."""
    paths = [*files_in(root / "build"), *files_in(root / ".lorabuild/base")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def locks(root: Path) -> dict[str, str]:
    """The lock files, by relative name."""
    return {path.relative_to(root).as_posix(): path.read_text() for path in (root / "projects").rglob("*.lock")}


def files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def records_of(root: Path) -> list[Path]:
    return files_in(root / ".lorabuild/store/record")


def record_path(root: Path, key: str) -> Path:
    return root / ".lorabuild/store/record" / key[:2] / f"{key}.json"


def keys(root: Path) -> dict[str, str]:
    """Job -> key of its last success."""
    with sqlite3.connect(root / ".lorabuild/state.sqlite") as db:
        return dict(db.execute("select name, key from job"))


def latest(root: Path) -> Path:
    """The newest run log."""
    return (root / ".lorabuild/runs/latest.jsonl").resolve()


def events(root: Path, event: str, before: Path) -> set[str]:
    """The jobs of which the last run has reported this; none if it has begun no run log since `before`."""
    log = latest(root)
    lines = log.read_text().splitlines(keepends=True) if log.exists() and log != before else []
    told = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may cut the last one off
    return {line["job"] for line in told if line["event"] == event}
