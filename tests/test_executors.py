"""Builds whose jobs run elsewhere: the same files, nothing built twice, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import process_executor
import pytest
import standin
from s3 import S3
from sgm_base import write_sgm
from tiny_base import tiny_folder
from world import HEAVY, LONGER, World

from lorabuild.errors import Interrupted, JobError
from lorabuild.executors.away import Away, Order
from lorabuild.executors.handles import Handles, Note
from lorabuild.executors.needs import Needs
from lorabuild.executors.protocol import Event, Resources, Status
from lorabuild.executors.sending import Pack
from lorabuild.hashing import digest_bytes
from lorabuild.making import Making
from lorabuild.remotes.sharing import Shared
from lorabuild.stages import STAGES
from lorabuild.store import Output, Record, Store

EXECUTOR = '[executor]\nkind = "slurm"\ngpus = 0\ncpus = 1\n'


class Elsewhere:
    """A world whose jobs are sent to nodes (process_executor.py), through a store in a folder or on S3."""

    def __init__(self, root: Path, world: World, env: dict[str, str], url: str = "", more: str = ""):
        self.world, self.nodes = world, root / "nodes"
        self.nodes.mkdir()
        self.url = url or f"file://{root}/remote"
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
        self.env = {"PYTHONPATH": path, **env, "NODES": str(self.nodes)}
        self.world.write("lorabuild.local.toml", f'[store]\nremote = "{self.url}"\n{EXECUTOR}{more}')

    def doit(self, *args: str) -> Any:
        return self.world.doit(*args, **self.env)

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "doit", *args],
            cwd=self.world.root,
            env=os.environ | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"} | self.env,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def sent(self) -> list[str]:
        """The jobs that nodes were given, in no order."""
        return sorted(json.loads((node / "spec.json").read_text())["name"] for node in self._all())

    def pids(self, job: str) -> list[int]:
        """Of the nodes' processes that had this job, the youngest last."""
        mine = [node for node in self._all() if json.loads((node / "spec.json").read_text())["name"] == job]
        return [int((node / "pid").read_text()) for node in sorted(mine, key=lambda one: one.stat().st_ctime_ns)]

    def events(self, job: str) -> list[dict[str, Any]]:
        lines = [line for node in self._all() if job.replace(":", "-") in node.name
                 for line in (node / "events").read_text().splitlines()]  # fmt: skip
        return [json.loads(line) for line in lines]

    def _all(self) -> list[Path]:
        return [path.parent for path in self.nodes.glob("*/pid")]


@pytest.fixture(autouse=True)
def nothing_runs_on(tmp_path: Path) -> Iterator[None]:
    """What a test that failed has left on its nodes is ended."""
    yield
    for path in tmp_path.glob("nodes/*/pid"):
        command = Path(f"/proc/{path.read_text()}/cmdline")
        if command.exists() and str(path.parent) in command.read_text():
            os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.fixture
def stage(tmp_path: Path) -> standin.Stage:
    """A project of stand-in stages."""
    found = standin.Stage(tmp_path)
    found.world.write("dodo.py", standin.DODO + "import process_executor\nprocess_executor.install()\n")
    return found


@pytest.fixture
def away(stage: standin.Stage, tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path, stage.world, stage.env)


def wait_for(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def build_files(world: World) -> dict[str, bytes]:
    return {name: data for name, data in world.built_files().items() if not name.startswith("report")}


# builds


def test_what_needs_a_gpu_leaves_and_the_files_are_those_of_a_local_build(
    away: Elsewhere, stage: standin.Stage, tmp_path: Path
):
    here = stage.copy(tmp_path / "here")
    here.world.write("lorabuild.local.toml", "")
    local = here.doit()
    assert local.code == 0
    result = away.doit()
    assert result.code == 0, result.out
    assert away.sent() == ["latents:p0", "train:p0"] and result.built == local.built
    assert away.world.built_files() == here.world.built_files()
    assert not list((away.world.root / ".lorabuild/jobs").glob("*")) and away.doit().events == []
    assert (away.world.root / ".lorabuild/logs/train-p0.log").read_text().startswith("train:p0 on ")


@pytest.mark.slow
def test_all_stages_can_leave(stage: standin.Stage, tmp_path: Path):
    names = ", ".join(f'"{name}"' for name in STAGES if name != "dataset")
    away = Elsewhere(tmp_path, stage.world, stage.env, more=f"stages = [{names}]\n")
    result = away.doit()
    assert result.code == 0 and len(away.sent()) == 7, result.out


@pytest.mark.slow
def test_jobs_are_under_way_together_without_n(tmp_path: Path):
    stage = standin.Stage(tmp_path, 3, train_p0="meet 3", train_p1="meet 3", train_p2="meet 3")
    stage.world.write("dodo.py", standin.DODO + "import process_executor\nprocess_executor.install()\n")
    away = Elsewhere(tmp_path, stage.world, stage.env)
    assert away.doit().code == 0 and stage.at_once("train") == 3


@pytest.mark.slow
def test_no_more_are_under_way_than_jobs_says(tmp_path: Path):
    stage = standin.Stage(tmp_path, 3, train_p0="sleep 0.3", train_p1="sleep 0.3", train_p2="sleep 0.3")
    stage.world.write("dodo.py", standin.DODO + "import process_executor\nprocess_executor.install()\n")
    away = Elsewhere(tmp_path, stage.world, stage.env, more="jobs = 1\n")
    assert away.doit().code == 0 and stage.at_once("train") == 1


def test_a_job_that_fails_there_is_one_line_here_with_its_log(away: Elsewhere, stage: standin.Stage):
    stage.plan(train_p0="fail")
    result = away.doit()
    assert result.code == 1 and "Traceback" not in result.out
    assert "train:p0 FAILED: step 3: the loss is not finite (nan): lower unet_lr" in result.out
    assert "(log: .lorabuild/logs/train-p0.log)" in result.out and len(away.sent()) == 2, "it was tried again"


@pytest.mark.slow
def test_anew_builds_anew_and_leaves_nothing_of_it_in_the_store(away: Elsewhere):
    assert away.doit().code == 0
    result = away.doit("-a", "train:p0")
    assert result.code == 0 and result.ran == {"train:p0": "built"}, result.out
    assert away.sent() == ["latents:p0", "train:p0", "train:p0"]
    names = [path.name for path in (away.nodes.parent / "remote/v1").rglob("*") if path.is_file()]
    assert not [name for name in names if "anew" in name or "state" in name]
    assert away.doit().events == []


@pytest.mark.slow
def test_a_lost_job_is_begun_again_and_after_all_tries_it_is_one_line(away: Elsewhere, stage: standin.Stage):
    stage.plan(train_p0="crash")
    result = away.doit()
    assert result.code == 1 and away.sent().count("train:p0") == 3
    assert re.search(r"train:p0: the node is gone \(slurm train-p0-\w+\); begun again, 2 of 3", result.out)
    assert "train:p0 FAILED: begun 3 times with slurm, and not done: the node is gone; its last line: " in result.out


def test_a_node_that_dies_in_a_training_costs_what_came_after_its_last_state(away: Elsewhere, stage: standin.Stage):
    """The stand-in keeps a state only when it is told to stop: SIGTERM, as by a preemption."""
    stage.plan(train_p0="train 60")
    build = away.start()
    stage.wait_for("trains")
    os.kill(away.pids("train:p0")[-1], signal.SIGTERM)
    out, _ = build.communicate(timeout=120)
    assert build.returncode == 0 and away.sent().count("train:p0") == 2, out
    (done,) = [event for event in away.events("train:p0") if event["event"] == "done"]
    assert done["notes"]["resumed_at"] > 0


@pytest.mark.slow
def test_a_damaged_input_in_the_store_is_sent_again(away: Elsewhere, stage: standin.Stage):
    """What the first project sent is damaged when the second one needs it."""
    assert away.doit().code == 0
    remote = away.nodes.parent / "remote/v1/blob"
    for path in remote.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(bytes(path.stat().st_size))
    away.world.manifest("p0", seed=9)
    for cache in away.nodes.glob("*/home"):
        cache.rename(cache.with_name("gone"))
    result = away.doit()
    assert result.code == 0 and result.built >= {"train:p0"}, result.out
    assert "files are missing or damaged in the store" in result.out


# the driver goes, and comes back


@pytest.mark.slow
@pytest.mark.parametrize("role, record", [("step/2", r".*\.step\.2\.json"), ("log", r"[0-9a-f]+\.json")])
def test_a_result_that_rotted_in_the_store_is_made_again_and_mended(
    away: Elsewhere, role: str, record: str, tmp_path: Path
):
    """Its size is right, so that nobody would upload it anew; and of a snapshot the record is not the job's own."""
    assert away.doit().code == 0
    before, remote = away.world.built_files(), tmp_path / "remote/v1"
    records = [
        json.loads(path.read_text()) for path in remote.glob("record/*/*.json") if re.fullmatch(record, path.name)
    ]
    blob = next(one["outputs"][role]["digest"] for one in records if one["stage"] == "train")
    path = remote / "blob" / blob[:2] / blob
    path.chmod(0o644)
    path.write_bytes(b"\0" * path.stat().st_size)
    for folder in (".lorabuild", "build"):
        shutil.rmtree(away.world.root / folder)
    result = away.doit()
    assert result.code == 0, result.out
    assert away.world.built_files() == before and digest_bytes(path.read_bytes()) == blob


def test_a_killed_driver_finds_its_job_and_builds_nothing_twice(away: Elsewhere, stage: standin.Stage):
    stage.plan(train_p0="train 40")
    build = away.start()
    stage.wait_for("trains")
    build.kill()
    build.communicate()
    result = away.doit()
    assert result.code == 0 and away.sent() == ["latents:p0", "train:p0"], result.out
    assert len([one for one in stage.lines("begin") if one["job"] == "train:p0"]) == 1


@pytest.mark.slow
def test_a_job_that_ended_while_no_driver_was_there_is_only_fetched(away: Elsewhere, stage: standin.Stage):
    stage.plan(train_p0="train 10")
    build = away.start()
    stage.wait_for("trains")
    build.kill()
    build.communicate()
    wait_for(lambda: away.events("train:p0")[-1]["event"] == "done")
    result = away.doit()
    assert result.ran["train:p0"] == "restored" and away.sent().count("train:p0") == 1
    assert not list((away.world.root / ".lorabuild/jobs").glob("*"))


def test_ctrl_c_leaves_the_job_where_it_is_and_says_so(away: Elsewhere, stage: standin.Stage):
    stage.plan(train_p0="train 300")
    build = away.start()
    stage.wait_for("trains")
    build.send_signal(signal.SIGINT)
    out, _ = build.communicate(timeout=60)
    assert build.returncode == 130 and "1 job of slurm go" in out and "`doit` finds it again" in out, out
    assert re.search(r"under way elsewhere: train:p0 \(slurm train-p0-\w+\); `doit` goes on from there", out), out
    os.kill(away.pids("train:p0")[-1], 0)
    os.kill(away.pids("train:p0")[-1], signal.SIGKILL)


@pytest.mark.slow
def test_a_second_ctrl_c_cancels_it_and_what_it_kept_is_taken_up(away: Elsewhere, stage: standin.Stage):
    stage.plan(train_p0="train 300")
    build = away.start()
    stage.wait_for("trains")
    build.send_signal(signal.SIGINT)
    time.sleep(0.5)
    build.send_signal(signal.SIGINT)
    out, _ = build.communicate(timeout=60)
    assert build.returncode == 130 and "cancelled 1 job of slurm" in out, out
    wait_for(lambda: away.events("train:p0")[-1]["event"] == "stopped")
    stage.plan(train_p0="train 1")
    result = away.doit()
    assert result.code == 0, result.out
    (done,) = [event for event in away.events("train:p0") if event["event"] == "done"]
    assert done["notes"]["resumed_at"] > 0


# the store


@pytest.mark.slow
def test_a_store_that_answers_503_for_a_while_costs_time_alone(stage: standin.Stage, s3: S3, tmp_path: Path):
    away = Elsewhere(tmp_path, stage.world, stage.env | s3.environment, s3.url(tmp_path.name))
    stage.plan(train_p0="sleep 1")
    build = away.start()
    stage.wait_for("begin", 4)  # the training
    until = time.monotonic() + 5
    s3.fault = lambda method, path: "503" if time.monotonic() < until else None
    out, _ = build.communicate(timeout=200)
    assert build.returncode == 0 and "it is asked again" in out, out
    assert away.sent() == ["latents:p0", "train:p0"] and len(stage.lines("begin")) == len(set(
        line["job"] for line in stage.lines("begin")
    ))  # fmt: skip


# settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[executor]\nkind = "slurm"', 'lorabuild.toml:2: executor.kind: "slurm" needs [store] remote'),
        (
            '[executor]\nkind = "slrm"',
            'lorabuild.toml:2: executor.kind: expected "local" or "slurm" or "ray", got "slrm" (did',
        ),
        (
            '[store]\nremote = "file:///x"\nread_only = true\n[executor]\nkind = "ray"',
            "lorabuild.toml:3: store.read_only: ex",
        ),
        ('[executor]\nstages = ["train", "resise"]', "lorabuild.toml:2: executor.stages: expected"),
        ("[executor]\ngpu = 1", "lorabuild.toml:2: executor.gpu: unknown key"),
        (
            "[executor.train]\nminuts = 1",
            'lorabuild.toml:2: executor.train.minuts: unknown key (did you mean "minutes"?)',
        ),
        ("[executor]\njobs = 0", "lorabuild.toml:2: executor.jobs: expected 1 or more, got 0"),
        ("[executor.slurm]\npartitions = 1", '(did you mean "partition"?)'),
    ],
)
def test_a_wrong_setting_is_one_line(empty: World, text: str, said: str):
    from lorabuild.errors import ConfigError
    from lorabuild.manifest import load

    empty.write("lorabuild.toml", text + "\n")
    with pytest.raises(ConfigError) as error:
        load(empty.root)
    assert said in str(error.value) and len(error.value.problems) == 1, error.value


def test_what_a_job_takes_is_the_tables_then_the_stages():
    table = {"jobs": 16, "tries": 3, "gpus": 1, "cpus": 4, "memory_gb": 24.0, "train": {"minutes": 600.0, "cpus": 8}}
    needs = Needs(table, STAGES, "file:///x")
    assert needs.stages == {"latents", "train", "samples"}
    assert needs.resources("latents") == Resources(1, 4, 24.0, None)
    assert needs.resources("train") == Resources(1, 8, 24.0, 600.0)
    assert needs.resources("train", 4).gpus == 4 and needs.told("train", 4)["threads"] == 2
    assert needs.resources("resize").gpus == 0
    assert Needs(table | {"gpus": 0}, STAGES, "").resources("train", 2) == Resources(0, 8, 24.0, 600.0)


# an executor without processes


class Told:
    """An executor that does as it is told: a list of statuses a job."""

    def __init__(self, *jobs: list[Status]):
        self.jobs, self.specs, self.cancelled = [list(one) for one in jobs], [], []

    def submit(self, spec: Any, resources: Resources) -> str:
        self.specs.append(spec)
        return str(len(self.specs) - 1)

    def poll(self, handle: str) -> Status:
        return self.jobs[int(handle)].pop(0)

    def cancel(self, handle: str) -> None:
        self.cancelled.append(handle)

    def logs(self, handle: str) -> str:
        return f"log of {handle}\n"


class Nothing:
    """What is not looked at."""

    left = staticmethod(bool)
    uploads: list[Any] = []  # noqa: RUF012
    dropped: list[str] = []  # noqa: RUF012

    def upload(self, pack: Any, told: Any, again: Any = ()) -> None:
        self.uploads.append(set(again))

    def drop_blob(self, digest: str) -> None:
        self.dropped.append(digest)


def away_of(tmp_path: Path, executor: Any, **table: Any) -> Away:
    needs = Needs({"jobs": 16, "tries": 3, **table}, STAGES, "file:///x")
    nothing: Any = Nothing()
    nothing.uploads, nothing.dropped = [], []
    return Away(lambda: executor, "told", needs, nothing, nothing, Handles(tmp_path / "jobs", tmp_path), tmp_path, {})


def order(
    heard: list[Event], warned: list[str], missing: Callable[[str], list[str]] = lambda record: [], **spec: Any
) -> Order:
    hear: Callable[[Event, str], None] = lambda event, record: heard.append(event)  # noqa: E731
    spec = {"key": "k", "name": "train:p0", "anew": False} | spec
    return Order(
        spec, Pack(), Resources(), lambda: None, hear, warned.append, lambda *told: None, warned.append, missing
    )


DONE = Status("ended", [{"event": "done", "notes": {}}])


def test_each_event_is_told_on_and_the_note_lasts_as_long_as_the_job(tmp_path: Path):
    heard: list[Event] = []
    seen: list[bool] = []
    away = away_of(tmp_path, Told([Status("waiting", (), "PENDING"), Status("running", [{"event": "warn"}]), DONE]))
    away.build(order(heard, waits := [], lambda record: seen.append((tmp_path / "jobs/k.json").exists()) or []))
    assert heard == [{"event": "warn"}] and waits == ["PENDING"] and seen == [True]
    assert not (tmp_path / "jobs/k.json").exists()


def test_a_note_of_another_kind_or_of_what_is_not_asked_for_is_not_followed(tmp_path: Path):
    executor = Told([DONE], [DONE], [DONE])
    away = away_of(tmp_path, executor)
    away.handles.write("k", Note("train:p0", "slurm", "7", "k"))
    away.build(order([], []))
    assert len(executor.specs) == 1
    away.handles.write("k", Note("train:p0", "told", "1", "k"))
    executor.specs.append({})
    away.build(order([], []))
    assert len(executor.specs) == 2, "it was under way already"
    away.handles.write("k", Note("train:p0", "told", "1", "k"))
    away.build(order([], [], anew=True))
    assert executor.cancelled == ["1"] and executor.specs[2]["record"].startswith("k/anew/")


def test_what_is_lost_or_stopped_is_begun_again_and_damaged_inputs_are_sent_anew(tmp_path: Path):
    stopped = Status("ended", [{"event": "lacking", "digests": ["d"]}, {"event": "stopped", "kept": "", "why": "gone"}])
    executor = Told([Status("lost", (), "node gpu3 is gone")], [stopped], [DONE])
    away = away_of(tmp_path, executor)
    away.build(order([], warned := []))
    assert warned == ["node gpu3 is gone (told 0); begun again, 2 of 3", "gone (told 1); begun again, 3 of 3"]
    assert away.sender.uploads == [set(), set(), {"d"}]


def test_an_old_job_that_made_less_than_is_wanted_now_is_followed_by_another(tmp_path: Path):
    left = [["step/2"], []]
    executor = Told([DONE], [DONE])
    away = away_of(tmp_path, executor, tries=1)
    executor.specs.append({})
    away.handles.write("k", Note("train:p0", "told", "0", "k"))
    away.build(order([], [], lambda record: left.pop(0)))
    assert len(executor.specs) == 2


def test_after_all_tries_it_is_one_line_with_the_end_of_the_log(tmp_path: Path):
    away = away_of(tmp_path, Told(*[[Status("lost", (), "gone")]] * 2), tries=2)
    with pytest.raises(JobError, match="begun 2 times with told, and not done: gone; its last line: log of 1"):
        away.build(order([], []))


def test_an_input_that_is_damaged_at_the_last_try_is_uploaded_by_the_next_build(tmp_path: Path):
    lacking = Status("ended", [{"event": "lacking", "digests": ["d"]}, {"event": "stopped", "kept": "", "why": "gone"}])
    away = away_of(tmp_path, Told([lacking]), tries=1)
    with pytest.raises(JobError, match="begun 1 time with told, and not done: gone"):
        away.build(order([], []))
    assert away.remote.dropped == ["d"], "its size may be right: by a listing it is there"


def test_a_job_that_is_built_anew_is_found_again_by_the_next_a_though_its_key_is_on_record(tmp_path: Path):
    away = away_of(tmp_path, Told())
    for key, record, since in (("k", "k", 0), ("l", "l/anew/1f", 0), ("m", "m/anew/1f", 8 * 86400)):
        away.handles.write(key, Note("train:p0", "told", "1", record, time.time() - since))
    away.tidy(lambda key: True)
    assert list(away.handles.noted()) == ["l"]


def test_of_two_workers_that_made_a_snapshot_the_first_ones_is_published(tmp_path: Path):
    """A lost node that was not lost goes on: what the other tells of is not what the store has."""
    store, published = Store(tmp_path / "store"), []
    first = Record("train", 1, {}, {}, {"step/2": Output("a" * 32, 1)})

    class There(Nothing):
        expect = drop_blob = staticmethod(lambda key: None)

        def fetch(self, key: str, roles: Any) -> Shared:
            store.put_record(key, first)
            return Shared(first, {})

    builder: Any = SimpleNamespace(
        store=store, state=None, away=SimpleNamespace(remote=There()),
        publish_early=lambda found, role, output: published.append(output),
    )  # fmt: skip
    found: Any = SimpleNamespace(key="k" * 32, job=SimpleNamespace(name="train:p0", snapshots=["step/2"]))
    Making(builder, found).hear_away({"event": "saved", "role": "step/2", "digest": "b" * 32, "size": 1}, "k" * 32)
    assert published == [first.outputs["step/2"]]


def test_who_leaves_keeps_the_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lorabuild.executors.away.LEAVING_SECONDS", 0.0)
    away = away_of(tmp_path, Told([Status("running")] * 3))
    away.leave()
    away.handles.write("k", Note("train:p0", "told", "0", "k"))
    with pytest.raises(Interrupted, match="told 0"):
        away.build(order([], []))
    assert away.handles.read("k")
    with pytest.raises(Interrupted), away.turn():
        pass


# real stages


@pytest.fixture
def real(built_once: World, tmp_path: Path) -> Callable[..., Elsewhere]:
    """The repository that was built once, without what was built, and nodes."""

    def make(more: str = "", url: str = "", **changes: Any) -> Elsewhere:
        world = World(tmp_path / "repository")
        world.project(**changes)
        world.write("dodo.py", process_executor.DODO)
        return Elsewhere(tmp_path, world, {}, url, more)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("stages", ["all", "usual"])
def test_the_same_bytes_as_a_local_build_and_the_driver_imports_no_torch(
    real: Callable[..., Elsewhere], built_once: World, stages: str
):
    names = ", ".join(f'"{name}"' for name in STAGES)
    cache = f'cache = "{built_once.root.parent}/node-cache-{stages}"\n'
    away = real(cache + (f"stages = [{names}]\n" if stages == "all" else ""))
    log = away.world.root / ".lorabuild/logs/worker.log"
    result = away.world.doit(**away.env, PYTHONPROFILEIMPORTTIME="1")
    assert result.code == 0, result.out
    assert build_files(away.world) == build_files(built_once)
    assert len(away.sent()) == (8 if stages == "all" else 2)
    imported = {line.rpartition("|")[2].strip() for line in result.err.splitlines() if "import time:" in line}
    assert "lorabuild.engine" in imported and not imported & set(HEAVY)
    if stages == "all":
        assert not log.exists() or "torch" not in log.read_text()


@pytest.mark.slow
def test_a_worker_killed_in_a_training_goes_on_elsewhere_to_equal_bytes(
    real: Callable[..., Elsewhere], straight: World
):
    away = real(**LONGER)
    (away.nodes / "node.json").write_text('{"state_seconds": 0.2}')
    build = away.start()
    remote = away.nodes.parent / "remote/v1"
    wait_for(lambda: list(remote.glob("state/*/state.json")), 200)
    wait_for(lambda: len([e for e in away.events("train:ember") if e["event"] == "progress"]) > 5, 100)
    os.kill(away.pids("train:ember")[-1], signal.SIGKILL)
    out, _ = build.communicate(timeout=300)
    assert build.returncode == 0 and away.sent().count("train:ember") == 2, out
    (done,) = [event for event in away.events("train:ember") if event["event"] == "done"]
    assert done["notes"]["resumed_at"] > 0
    assert build_files(away.world) == build_files(straight)


@pytest.mark.slow
def test_pictures_and_a_checkpoint_in_one_file_come_out_the_same(tmp_path: Path):
    """Its vocabulary, which lies beside it, is sent along; prompts are, too."""
    here = World(tmp_path / "here")
    here.project(steps=2)
    manifest = here.root / "projects/ember/lora.toml"
    text = manifest.read_text().replace('base = "tiny"', 'base = "own"')
    manifest.write_text(f'{text}\n[samples]\nprompts = "p.txt"\nsample_every_n_steps = 2\nheld_out = true\n')
    here.write("projects/ember/p.txt", "ember, red --s 2 --w 64 --h 64\n")
    here.write("lorabuild.toml", '[bases.own]\nfile = "models/own.safetensors"\n')
    (here.root / "models").mkdir()
    write_sgm(here.root / "models/own.safetensors")
    shutil.copytree(tiny_folder() / "tokenizer", here.root / "models/own/tokenizer")
    there = here.copy(tmp_path / "there")
    there.write("dodo.py", process_executor.DODO)
    away = Elsewhere(tmp_path, there, {})
    assert here.doit("ember").code == 0
    result = away.doit("ember")
    assert result.code == 0 and away.sent() == ["latents:ember", "samples:ember", "train:ember"], result.out
    assert there.built_files() == here.built_files()
