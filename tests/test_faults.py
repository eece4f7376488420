"""A disk that is full or broken, at each kind of write: one clear line, exit code 1, nothing lost, and the next build ends well."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import killing
import pytest
import quick_world
from quick_world import build, made
from test_build import in_training
from world import LONGER, World

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks /proc for the name of an open file")

FAULTY = Path(__file__).with_name("faulty")
SAID = {
    "ENOSPC": ("No space left on device", "database or disk is full"),
    "EIO": ("Input/output error", "disk I/O error"),
}
# what is written -> what fails, from the how-manieth time on, and what the line must name
WRITES = {
    "blob": ("write 1 */staging/weights", "train:ember: .lorabuild/scratch/"),
    "blob, to the disk": ("fsync 3 */staging/*", "base:tiny: .lorabuild/scratch/"),
    "blob, to its place": ("replace 20 */store/blob/*", ": .lorabuild/"),
    "piece": ("write 1 */scratch/*.part", "dataset:ember: .lorabuild/scratch/"),
    "record": ("write 2 */part/.????????????????????????????????.json.*", ".lorabuild/store/record/"),
    "record, its part": ("open 2 */part/.????????????????????????????????.json.*", ".lorabuild/store"),
    "record, to the disk": ("fsync 4 */part/.????????????????????????????????.json.*", ".lorabuild/store/record/"),
    "record, to its place": ("replace 3 */store/record/*", ".lorabuild/store/record/"),
    "snapshot": ("write 1 */staging/step/2", "train:ember: .lorabuild/scratch/"),
    "snapshot's record": ("write 1 */part/.*.step.2.json.*", ".lorabuild/store/record/"),
    "snapshot, published": ("write 1 */part/.ember-step00000004*", "build/ember/ember-step00000004.safetensors"),
    "base, published": ("write 2 */part/.model.safetensors*", ".lorabuild/base/tiny/"),
    "data set, published": ("write 1 */part/.dataset.json*", "/dataset.json"),
    "weights, published": ("write 2 */part/.ember-chopped.*", "build/ember/ember-chopped.safetensors"),
    "weights, to the disk": ("fsync 1 */part/.moss.safetensors*", "build/moss/moss.safetensors"),
    "weights, to their place": ("replace 1 */build/ember/ember-resized.*", "build/ember/ember-resized.safetensors"),
    "lock file of a project": ("write 3 */part/.lora.lock.*", "/lora.lock"),
    "lock file, to its place": ("replace 2 */lora.lock", "/lora.lock"),
    "state, made": ("sqlite 1 */state.sqlite", ".lorabuild/state.sqlite"),
    "state": ("sqlite 9 */state.sqlite", ".lorabuild/state.sqlite"),
    "state, later": ("sqlite 60 */state.sqlite", ".lorabuild/state.sqlite"),
    "run log": ("write 2 */runs/*.jsonl", ".lorabuild/runs/"),
    "run log, made": ("open 1 */runs/*.jsonl", ".lorabuild/runs/"),
    "run log, latest": ("replace 1 */runs/latest.jsonl", ".lorabuild/runs/"),
    "lock": ("open 1 */.lorabuild/lock", ".lorabuild/lock"),
    "holder of the lock": ("write 1 */holder.json", ".lorabuild/holder.json"),
    "log of a job": ("open 1 */logs/train-ember.log", "logs/train-ember.log"),
    "log of workers": ("open 1 */logs/worker.log", "logs/worker.log"),
    "scratch": ("open 1 */scratch/*.lock", ".lorabuild/scratch/"),
}
ALWAYS = {"blob": "ENOSPC", "record": "EIO", "snapshot": "EIO", "weights, published": "ENOSPC", "state": "ENOSPC", "run log": "EIO"}  # fmt: skip
CASES = [
    pytest.param(what, error, marks=[] if ALWAYS.get(what) == error else pytest.mark.slow)
    for number, what in enumerate(WRITES)
    for error in (SAID if what in ALWAYS else [list(SAID)[number % 2]])
]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> killing.Golden:
    return quick_world.golden(tmp_path_factory.mktemp("golden") / "repository")


def faulty(fault: str) -> dict[str, str]:
    """The environment of a build in which writes of a kind fail."""
    return {"FAULT": fault, "PYTHONPATH": os.pathsep.join([str(FAULTY), killing.environment()["PYTHONPATH"]])}


@pytest.mark.parametrize(("what", "error"), CASES)
def test_a_disk_that_fails_is_one_line_and_the_next_build_ends_well(
    golden: killing.Golden, tmp_path: Path, what: str, error: str
):
    fault, named = WRITES[what]
    op, number, pattern = fault.split(" ", 2)
    root = made(tmp_path / "repository")
    done = build(root, **faulty(f"{op} {error} {number} {pattern}"))
    lines = [line for line in done.said.splitlines() if any(word in line for word in SAID[error])]
    (line,) = (line for line in lines if " FAILED: " not in line)  # told when it happens, and again at the end
    assert done.code == 1 and named in line, done.said
    assert "Traceback" not in done.said and "fault in lorabuild" not in done.said, done.said
    assert killing.partial(root, golden) == []

    assert_next_build_ends_well(root, golden)


@pytest.mark.slow
@pytest.mark.parametrize("what", WRITES)
def test_a_kill_in_the_middle_of_a_write_loses_nothing(golden: killing.Golden, tmp_path: Path, what: str):
    op, number, pattern = WRITES[what][0].split(" ", 2)
    root = made(tmp_path / "repository")
    done = build(root, **faulty(f"{op} SIGKILL {number} {pattern}"))
    assert done.code == -signal.SIGKILL or (done.code == 1 and "SIGKILL" in done.said), done.said
    assert "Traceback" not in done.said and killing.partial(root, golden) == []
    assert_next_build_ends_well(root, golden)


READERS = [("push",), ("status",), ("verify",), ("diff", "ember", "moss"), ("list",)]
WRITERS = [("pull",), ("gc", "--yes"), ("build",)]


@pytest.mark.parametrize("args", READERS, ids=" ".join)
def test_who_only_reads_does_without_a_state_that_cannot_be_opened(tmp_path: Path, args: tuple[str, ...]):
    world = World(made(tmp_path / "repository"))
    (world.root / ".lorabuild/state.sqlite").mkdir(parents=True)
    done = world.lorabuild(*args)
    assert "Traceback" not in done.err and "state.sqlite" not in done.out + done.err


@pytest.mark.parametrize(
    ("args", "fault"),
    [*((args, "written") for args in (*WRITERS, *READERS)), *((args, "opened") for args in WRITERS)],
    ids=lambda one: one if isinstance(one, str) else " ".join(one),
)
def test_a_state_that_cannot_be_used_is_one_line_of_every_verb(tmp_path: Path, args: tuple[str, ...], fault: str):
    world = World(made(tmp_path / "repository"))
    world.write("lorabuild.local.toml", f'[store]\nremote = "file://{tmp_path}/remote"\n')
    environment = {}
    if fault == "opened":
        (world.root / ".lorabuild/state.sqlite").mkdir(parents=True)
    else:
        environment = faulty("sqlite ENOSPC 1 */state.sqlite")
    done = world.lorabuild(*args, **environment)
    (line,) = done.err.splitlines()
    code = 2 if args[0] == "diff" else 1  # whose 1 says that two differ
    assert (done.code, done.out) == (code, "") and line.startswith(".lorabuild/state.sqlite: "), done.out + done.err


def assert_next_build_ends_well(root: Path, golden: killing.Golden) -> None:
    """It builds what was not finished, leaves nothing over, and its bytes are those of an undisturbed build."""
    finished = {job for job, key in golden.keys.items() if killing.record_path(root, key).exists()}
    done = build(root)
    assert done.code == 0 and killing.built_files(root) == golden.files, done.said
    assert not finished & done.built and killing.locks(root) == golden.locks
    assert not list((root / ".lorabuild/scratch").iterdir()) and not list((root / ".lorabuild/store/part").iterdir())


@pytest.mark.slow
def test_a_training_whose_state_cannot_be_saved_goes_on_from_the_one_before(built: World, straight: World):
    full = built
    full.manifest(**LONGER)
    killing.kill(driver := in_training(full), "all")
    driver.wait(60)
    result = full.doit(
        **faulty("write ENOSPC 2 */scratch/state.part")
    )  # of the first save after that, the second write
    assert result.code == 1 and "Traceback" not in result.out + result.err
    (line,) = (line for line in result.out.splitlines() if line.startswith("failed: "))
    assert "scratch/state: No space left on device" in line
    assert [path.name for path in full.root.glob(".lorabuild/scratch/*/scratch/*")] == ["state"]
    result = full.doit()
    (train,) = (event for event in result.events if event["job"] == "train:ember")
    assert result.code == 0 and train["resumed_at"] > 0
    assert full.built_files() == straight.built_files()
