"""A project of which nothing has changed is not even loaded; every file that it was made from or has made can change that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lora_lab import write_lora
from test_bases import checkpoint
from world import World

from lorabuild import signature, watch
from lorabuild.errors import InputChanged
from lorabuild.scan import GONE, Scan
from lorabuild.session import opened
from lorabuild.state import State

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
STAND_INS = ("norms", "dataset", "latents", "train", "spectrum", "resize", "samples")
DODO = f"""\
from standins import install

install{STAND_INS}
from lorabuild.graph import DOIT_CONFIG, task_lorabuild
"""
SOURCED = """\
[project]
base = "own"
source = "old.safetensors"

[resize]
fro_ckpt = 1
thr = -3

[chop]
keep = ["OUT01"]
"""


class Quick(World):
    """A repository of two projects whose long stages are stand-ins."""

    def doit(self, *args: str, **env: str):
        paths = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
        return super().doit(*args, PYTHONPATH=paths, **env)

    @property
    def clean(self) -> set[str]:
        """The projects that a build would leave alone."""
        with opened(self.root, writing=False, building=False, wanted=frozenset()) as engine:
            return set(engine.clean)

    def settle(self) -> None:
        """Build what is stale; after that nothing is."""
        for _ in range(2):  # once more where a file was too young to be trusted
            result = self.doit()
            assert result.code == 0, result.out + result.err
            if self.clean == {"ember", "moss"}:
                return
        raise AssertionError(f"only {self.clean} are clean after a build")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quick]:
    found = Quick(tmp_path_factory.mktemp("clean") / "repository")
    found.write("dodo.py", DODO)
    found.write(
        "lorabuild.toml",
        '[build]\ndefault = ["chop", "samples"]\n[models]\ndirs = ["models"]\n\n[bases.own]\nfile = "own.safetensors"\n',
    )
    found.write("recipes/short.toml", "[recipe]\nmax_grad_norm = 1\n")
    found.project("ember")
    manifest = found.root / "projects/ember/lora.toml"
    manifest.write_text('extends = "short"\n' + manifest.read_text())
    shutil.move(
        found.root / "projects/ember/images", found.root / "pictures"
    )  # a folder that no walk for manifests sees
    manifest.write_text(manifest.read_text().replace('"images"', '"../../pictures"'))
    manifest.write_text(manifest.read_text().replace("[dataset]\n", '[dataset]\ntrain_data_dir = "../../named"\n'))
    manifest.write_text(manifest.read_text().replace("[dataset]\n", '[dataset]\nreg_data_dir = "../../reg"\n'))
    manifest.write_text(manifest.read_text().replace("[recipe]\n", '[recipe]\ninit = "../../start.safetensors"\n'))
    manifest.write_text(manifest.read_text() + '[samples]\nprompts = "../../prompts.txt"\n')
    found.picture("named/2_ember fox/1.png", 11)
    found.picture("reg/1_fox/1.png", 14)
    found.write("prompts.txt", "ember, red\n")
    checkpoint(found.root / "models/own.safetensors")
    found.write("projects/moss/lora.toml", SOURCED)
    for name in ("projects/moss/old.safetensors", "start.safetensors"):
        write_lora(found.root / name, {
            f"lora_unet_output_blocks_1_1_proj_in.lora_{part}.weight": torch.ones(4, 4) for part in ("up", "down")
        })  # fmt: skip
    yield found


def edit(path: Path) -> None:
    """Other bytes, which for a TOML file, a caption and a picture's stand-in mean the same."""
    path.write_bytes(path.read_bytes() + b"\n")


def blob_of(world: Quick, job: str) -> Path:
    with opened(world.root, writing=False, building=False) as engine:
        found = engine.assess(job)
        return engine.store.blob(next(iter(found.outputs.values())).digest)


def record_of(world: Quick, job: str) -> Path:
    with opened(world.root, writing=False, building=False) as engine:
        return engine.store.record_path(engine.assess(job).key)


def watched(world: Quick) -> set[str]:
    """The manifests of which something is noted."""
    with opened(world.root, writing=False, building=False) as engine:
        return set(engine.state.watched())


def overwrite(path: Path) -> None:
    path.chmod(0o644)
    edit(path)


def base_gone(world: Quick) -> None:
    """The file that was found first goes; the same one stands in another folder."""
    first = world.root / "own.safetensors"
    shutil.copy(world.root / "models/own.safetensors", first)
    world.settle()
    first.unlink()


# what happens -> the projects that are looked at, and no others
CHANGES: dict[str, tuple[Callable[[Quick], object], set[str]]] = {
    "manifest edited": (lambda w: edit(w.root / "projects/ember/lora.toml"), {"ember"}),
    "manifest touched": (lambda w: os.utime(w.root / "projects/moss/lora.toml"), {"moss"}),
    "recipe edited": (lambda w: edit(w.root / "recipes/short.toml"), {"ember"}),
    "lorabuild.toml edited": (lambda w: edit(w.root / "lorabuild.toml"), {"ember", "moss"}),
    "lorabuild.local.toml created": (lambda w: w.write("lorabuild.local.toml", "\n"), {"ember", "moss"}),
    "lorabuild.local.toml deleted": (lambda w: (w.root / "lorabuild.local.toml").unlink(), {"ember", "moss"}),
    "image edited": (lambda w: edit(w.root / "pictures/1.png"), {"ember"}),
    "image added": (lambda w: w.picture("pictures/5.png", 5), {"ember"}),
    "image renamed": (lambda w: (w.root / "pictures/5.png").rename(w.root / "pictures/6.png"), {"ember"}),
    "caption created": (lambda w: w.write("pictures/6.txt", "ember"), {"ember"}),
    "caption edited": (lambda w: edit(w.root / "pictures/6.txt"), {"ember"}),
    "caption deleted": (lambda w: (w.root / "pictures/6.txt").unlink(), {"ember"}),
    "image deleted": (lambda w: (w.root / "pictures/6.png").unlink(), {"ember"}),
    "folder of images added": (lambda w: w.picture("named/1_coal/1.png", 12), {"ember"}),
    "image in such a folder added": (lambda w: w.picture("named/1_coal/2.png", 13), {"ember"}),
    "such a folder renamed": (lambda w: (w.root / "named/1_coal").rename(w.root / "named/3_coal"), {"ember"}),
    "folder of others added": (lambda w: w.picture("reg/1_cat/1.png", 15), {"ember"}),
    "caption of others created": (lambda w: w.write("reg/1_cat/1.txt", "a cat"), {"ember"}),
    "prompts edited": (lambda w: edit(w.root / "prompts.txt"), {"ember"}),
    "what is continued touched": (lambda w: os.utime(w.root / "start.safetensors"), {"ember"}),
    "source edited": (lambda w: os.utime(w.root / "projects/moss/old.safetensors"), {"moss"}),
    "base edited": (lambda w: os.utime(w.root / "models/own.safetensors", (9, 9)), {"moss"}),
    "base found earlier": (lambda w: shutil.copy(w.root / "models/own.safetensors", w.root), {"moss"}),
    "base no longer there": (base_gone, {"moss"}),
    "artifact edited": (lambda w: edit(w.root / "build/ember/ember.safetensors"), {"ember"}),
    "artifact deleted": (lambda w: (w.root / "build/moss/moss-chopped.safetensors").unlink(), {"moss"}),
    "blob damaged": (lambda w: overwrite(blob_of(w, "chop:ember")), {"ember"}),
    "blob deleted": (lambda w: blob_of(w, "chop:moss").unlink(), {"moss"}),
    "record deleted": (lambda w: record_of(w, "resize:ember").unlink(), {"ember"}),
    "norms of its base deleted": (lambda w: record_of(w, "norms:own").unlink(), {"moss"}),
    "a file of the shared base deleted": (lambda w: (w.root / ".lorabuild/base/tiny/vae/config.json").unlink(), {"ember"}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_its_projects_are_looked_at(world: Quick, change: str):
    make, looked_at = CHANGES[change]
    world.settle()
    make(world)
    assert world.clean == {"ember", "moss"} - looked_at
    assert world.doit().code == 0


@pytest.mark.parametrize(
    ("name", "looked_at"),
    [
        ("recipes/short.toml", {"ember"}),
        ("projects/moss/lora.toml", {"moss"}),
        ("projects/moss/old.safetensors", {"moss"}),
        ("lorabuild.toml", {"ember", "moss"}),
        ("models/own.safetensors", {"moss"}),
        ("pictures", {"ember"}),
        ("named/2_ember fox", {"ember"}),
        ("reg", {"ember"}),
        ("prompts.txt", {"ember"}),
        ("start.safetensors", {"ember"}),
        ("projects/ember/lora.lock", {"ember"}),
    ],
)
def test_what_is_deleted_and_what_is_put_back_are_looked_at(world: Quick, name: str, looked_at: set[str]):
    world.settle()
    path, aside = world.root / name, world.root / "aside"
    path.rename(aside)
    assert unchanged(world) == {"ember", "moss"} - looked_at
    aside.rename(path)
    if path.is_file():  # a folder with the same files in it is the same
        os.utime(path)
        assert unchanged(world) == {"ember", "moss"} - looked_at


def unchanged(world: Quick) -> set[str]:
    """The projects whose files are as they were, whether or not the others can be loaded."""
    state = State(world.root / ".lorabuild/state.sqlite", world.root)
    try:
        return {path.parent.name for path in watch.Watches(world.root, state, Scan()).clean()}
    finally:
        state.close()


def test_a_new_project_is_seen_and_a_removed_one_is_gone(world: Quick):
    world.settle()
    world.write("projects/fern/lora.toml", SOURCED)
    shutil.copy(world.root / "projects/moss/old.safetensors", world.root / "projects/fern")
    assert world.doit().ran.keys() >= {"chop:fern"}
    assert watched(world) == {f"projects/{name}/lora.toml" for name in ("ember", "fern", "moss")}
    (world.root / "projects/fern/lora.toml").unlink()  # as of a branch that lacks it: what git ignores stays there
    result = world.doit()
    assert result.code == 0, result.out + result.err
    assert watched(world) == {f"projects/{name}/lora.toml" for name in ("ember", "moss")}
    assert world.clean == {"ember", "moss"}
    shutil.rmtree(world.root / "projects/fern")


def test_another_version_of_a_stage_or_of_the_tool_is_looked_at(world: Quick, monkeypatch: pytest.MonkeyPatch):
    world.settle()
    with monkeypatch.context() as patch:
        patch.setattr(watch, "__version__", "999")
        assert world.clean == set()
    chop = watch.STAGES["chop"]
    with monkeypatch.context() as patch:
        patch.setitem(watch.STAGES, "chop", type(chop)(chop.name, 999, chop.jobs, chop.run))
        assert world.clean == set()
    assert world.clean == {"ember", "moss"}


def test_every_folder_of_code_that_decides_is_looked_at(world: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    faces = {
        "checks",
        "completing",
        "doctor",
        "exporting",
        "forecast",
        "importing",
        "report",
        "scaffold",
        "upkeep",
        "verbs",
    }
    package = watch.PACKAGE
    found = {path.parent.relative_to(package).as_posix() for path in package.rglob("__init__.py")} - faces
    assert {folder if folder != "." else "" for folder in found} == set(watch.CODE)
    world.settle()
    shutil.copytree(package, tmp_path / "lorabuild", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(watch, "PACKAGE", tmp_path / "lorabuild")
    before = watch.tool_digest(world.root, Scan())
    edit(tmp_path / "lorabuild/manifest/tables/recipe.py")
    assert watch.tool_digest(world.root, Scan()) != before


def test_what_is_found_unchanged_is_clean_at_once(world: Quick):
    world.settle()
    for path in (world.root / "pictures").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    result = world.doit()
    assert result.events == [] and world.clean == {"ember", "moss"}


def test_a_project_that_is_built_is_clean_at_once(world: Quick):
    world.settle()
    manifest = world.root / "projects/moss/lora.toml"
    manifest.write_text(SOURCED.replace("-3", "-2"))
    assert "resize:moss" in world.doit().built and world.clean == {"ember", "moss"}
    manifest.write_text(SOURCED)
    assert world.doit().ran and world.clean == {"ember", "moss"}


def test_a_file_that_changes_while_it_builds_is_looked_at_by_the_next_run(world: Quick):
    """What a run has looked at is what it noted before it read anything."""
    world.settle()
    with opened(world.root, writing=True, building=False) as engine:
        for name in engine.jobs:
            assert engine.fresh(name)
        edit(world.root / "pictures/2.txt")
        engine.settle(engine.made_by)
    assert world.clean == {"moss"}


@pytest.mark.parametrize("when", ["while it waits for its slot", "while it runs"])
def test_a_base_that_changes_leaves_nothing_under_the_key_of_the_old_one(world: Quick, when: str):
    """Neither an output on record nor a state to go on from."""
    world.settle()
    base = world.root / "models/own.safetensors"
    with opened(world.root, writing=True, building=False) as engine:
        engine.anew = frozenset({"norms:own"})
        found = engine.assess("norms:own")
        scratch = world.root / ".lorabuild/scratch" / found.key / "scratch"
        scratch.mkdir(parents=True)

        def events(spec, place):
            if when == "while it waits for its slot":
                pytest.fail("it was begun")
            checkpoint(base, unet=2)
            yield {"event": "saved", "role": "norms.json", "digest": "0" * 32, "size": 1}
            pytest.fail("it was taken")

        engine.pool.events = events
        if when == "while it waits for its slot":
            checkpoint(base, unet=2)
        with pytest.raises(InputChanged):
            engine.build(found)
    assert not scratch.exists()
    checkpoint(base)


def test_where_stamps_are_coarse_a_run_waits_once_and_the_next_looks_again(
    world: Quick, monkeypatch: pytest.MonkeyPatch
):
    world.settle()
    waits: list[float] = []
    with opened(world.root, writing=True, building=False) as engine, monkeypatch.context() as patch:
        patch.setattr("lorabuild.state.racy", lambda seen: True)  # whatever is written stays young for seconds
        patch.setattr("lorabuild.watch.time.sleep", waits.append)
        for project in ("ember", "moss"):
            for path in (world.root / "build" / project).iterdir():
                engine.state.forget(path)
        for name in engine.jobs:
            assert engine.fresh(name)
        engine.settle(engine.made_by)
    assert len(waits) == 1 and world.clean == set()


def test_a_copy_of_the_repository_looks_at_its_own_files(world: Quick, tmp_path: Path):
    world.settle()
    copy = Quick(shutil.copytree(world.root, tmp_path / "copy", symlinks=True))
    assert copy.clean == set()


def test_named_targets_and_lists_work_on_clean_projects(world: Quick):
    world.settle()
    assert world.doit("chop:ember").out == "nothing to do: 8 jobs are fresh\n"
    assert world.doit("moss").code == world.doit("chop").code == 0
    assert "chop:moss" in world.doit("list", "--all").out
    assert 'did you mean "moss"' in world.doit("mos").err
    result = world.doit("-a", "chop:ember")
    assert result.built == {"chop:ember"}


def test_a_run_without_work_says_so_and_leaves_an_empty_log(world: Quick):
    world.settle()
    result = world.doit()
    assert result.out == "nothing to do: 13 jobs are fresh\n" and result.events == []
    assert world.latest().read_text() == ""


# the parts


def test_a_young_file_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").write_text("a")
    now = (tmp_path / "a.txt").stat().st_mtime_ns
    monkeypatch.setattr("lorabuild.scan.time.time_ns", lambda: now + 1000)
    scan = Scan()
    assert scan.folder(str(tmp_path)) != GONE and scan.is_young(str(tmp_path))
    monkeypatch.setattr("lorabuild.scan.time.time_ns", lambda: now + 10 * signature.COARSE_GRAIN_NS)
    scan = Scan()
    assert scan.folder(str(tmp_path)) != GONE and not scan.is_young(str(tmp_path))


def test_inodes_do_not_count_on_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    path.write_text("a")
    assert signature.signature(path)[3] == path.stat().st_ino
    monkeypatch.setattr(signature, "network_devices", lambda: frozenset({path.stat().st_dev}))
    assert signature.signature(path)[3] == 0


@pytest.mark.parametrize(
    ("line", "device"),
    [
        ("36 35 0:42 / /data rw,relatime shared:1 - nfs4 server:/data rw", os.makedev(0, 42)),
        ("36 35 0:43 / /data rw,relatime - fuse.sshfs me@there:/data rw", os.makedev(0, 43)),
        ("24 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw", None),
    ],
)
def test_network_file_systems_are_known_by_their_mounts(line: str, device: int | None):
    assert signature._network_device(line) == device
