"""`lorabuild verify`: it tells damage from what is merely not here or another build, and names what mends it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from chops import blob, chops, lines, lock, manifest, record, spoil
from world import World

from lorabuild.locks.locked import Line
from lorabuild.locks.lockfile import text_of
from lorabuild.store import Output


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = chops(tmp_path_factory.mktemp("template") / "repository", "ember", "frost")
    assert world.doit().built == {"chop:ember", "chop:frost"}
    return world


@pytest.fixture
def world(once: World, tmp_path: Path) -> World:
    return once.copy(tmp_path / "repository")


def verify(world: World, *args: str, code: int = 0) -> list[str]:
    """`what: where` of each finding."""
    result = world.lorabuild("verify", "--json", *args)
    assert result.code == code, result.out + result.err
    told = json.loads(result.out)
    assert code == any(one["damage"] for one in told["findings"])
    return [f"{one['what']}: {one['where']}" for one in told["findings"]]


def weights(world: World, name: str = "ember") -> Path:
    """The blob of a project's chop."""
    return blob(world, lines(world, name)[f"chop:{name}"]["outputs"]["weights"]["digest"])


def shown(world: World, path: Path) -> str:
    return str(path.relative_to(world.root))


def test_a_whole_repository_has_no_findings(world: World):
    result = world.lorabuild("verify")
    assert result.code == 0 and len(result.out.splitlines()) == 1
    told = json.loads(world.lorabuild("verify", "ember", "--json").out)
    assert told["whole"] == ["chop:ember"] and told["files"] == 2 and told["bytes"] > 0 and not told["findings"]


def test_a_damaged_blob_is_found_and_doit_mends_it(world: World):
    path = weights(world)
    spoil(path)
    assert verify(world, code=1) == [f"damaged blob: {shown(world, path)}"]
    result = world.lorabuild("verify")
    row, summary = result.out.splitlines()
    assert (result.code, "`doit chop:ember` restores or rebuilds it" in row) == (1, True)
    assert "1 damaged files" in summary
    assert path.exists()  # it only reads
    assert world.doit().ran == {"chop:ember": "built"}
    assert verify(world) == []


def hide(world: World, path: Path) -> None:
    """Make the state believe that it has seen the file as it is: so bits rot on a disk."""
    stat = path.stat()
    seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    db = sqlite3.connect(world.root / ".lorabuild/state.sqlite")
    with db:
        db.execute("update file set size=?, mtime_ns=?, ctime_ns=?, ino=? where path=?", (*seen, shown(world, path)))
        for manifest_, text in db.execute("select manifest, value from watch").fetchall():
            watch = json.loads(text)
            if str(path) in watch["made"]:
                watch["made"][str(path)] = seen
                db.execute("update watch set value=? where manifest=?", (json.dumps(watch), manifest_))
    db.close()


ROTTEN = {"damaged blob": "built", "changed file": "restored", "damaged record": "built"}


@pytest.mark.parametrize("what", ROTTEN)
def test_what_no_stat_shows_is_found_and_then_doit_mends_it(world: World, what: str):
    path = {
        "damaged blob": weights(world),
        "changed file": world.root / "build/ember/ember-chopped.safetensors",
        "damaged record": record(world, lines(world, "ember")["chop:ember"]["key"]),
    }[what]
    assert world.doit().events == []  # a copy looks at its own files, once, and notes them
    spoil(path)
    hide(world, path)
    assert world.doit().events == [], "a stat shows it"
    assert f"{what}: {shown(world, path)}" in verify(world, code=1)
    assert watched(world) == {"projects/frost/lora.toml"}
    assert world.doit().ran == {"chop:ember": ROTTEN[what]}
    assert verify(world) == []


def watched(world: World) -> set[str]:
    """The manifests of projects that a build need not look at."""
    db = sqlite3.connect(world.root / ".lorabuild/state.sqlite")
    found = {manifest_ for (manifest_,) in db.execute("select manifest from watch")}
    db.close()
    return found


def test_a_missing_blob_is_found(world: World):
    path = weights(world)
    path.unlink()
    assert verify(world, "ember", code=1) == [f"missing blob: {shown(world, path)}"]
    assert world.doit().ran == {"chop:ember": "built"}
    assert verify(world) == []


def test_a_damaged_record_is_found(world: World):
    path = record(world, lines(world, "ember")["chop:ember"]["key"])
    path.write_text('{"stage": ')
    found = verify(world, code=1)
    assert found == [f"damaged record: {shown(world, path)}", "not built: chop:ember"]
    world.doit()
    assert verify(world) == []


def test_an_edited_file_in_build_is_found_and_doit_restores_it(world: World):
    spoil(world.root / "build/ember/ember-chopped.safetensors")
    assert verify(world, code=1) == ["changed file: build/ember/ember-chopped.safetensors"]
    assert verify(world, "frost") == []
    assert world.doit().ran == {"chop:ember": "restored"}
    assert verify(world) == []


def test_what_is_only_not_there_is_no_damage(world: World):
    (world.root / "build/ember/ember-chopped.safetensors").unlink()
    assert verify(world) == ["missing file: build/ember/ember-chopped.safetensors"]


def test_what_is_not_built_is_no_damage(world: World):
    manifest(world, "ember", keep='["TE1"]')
    assert verify(world) == ["lock behind: chop:ember", "not built: chop:ember"]


def test_a_fresh_clone_has_nothing_that_could_be_damaged(world: World):
    shutil.rmtree(world.root / ".lorabuild")
    shutil.rmtree(world.root / "build")
    assert verify(world) == ["not built: chop:ember", "not built: chop:frost"]


def test_a_lost_state_is_no_damage(world: World):
    for path in (world.root / ".lorabuild").glob("state.sqlite*"):
        path.unlink()
    found = verify(world)
    assert found == [f"unknown file: build/{name}/{name}-chopped.safetensors" for name in ("ember", "frost")]


def test_other_bytes_under_the_locks_key_are_another_build_and_no_damage(world: World):
    key = lines(world, "ember")["chop:ember"]["key"]
    lock(world, "ember").write_text(text_of({"chop:ember": Line(key, {"weights": Output("0" * 32, 9)})}))
    assert verify(world) == ["another build: chop:ember"]
    result = world.lorabuild("verify")
    assert result.code == 0 and "same key, another build" in result.out and "2 of 2 jobs are whole" in result.out


def test_a_blob_that_only_the_lock_names_is_read_too(world: World):
    path = weights(world)
    spoil(path)
    manifest(world, "ember", keep='["TE1"]')
    assert verify(world, code=1)[0] == f"damaged blob: {shown(world, path)}"


def test_a_lock_in_conflict_is_told_and_is_no_damage(world: World):
    lock(world, "ember").write_text("<<<<<<< HEAD\n")
    assert verify(world) == ["lock in conflict: projects/ember/lora.lock"]


def test_it_waits_for_no_build_and_changes_nothing(world: World):
    from filelock import FileLock

    spoil(weights(world))
    before = {path: path.read_bytes() for path in world.root.rglob("*") if path.is_file()}
    with FileLock(world.root / ".lorabuild/lock"):
        assert len(verify(world, code=1)) == 1
    after = {path: path.read_bytes() for path in world.root.rglob("*") if path.is_file()}
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {"state.sqlite", "state.sqlite-shm", "state.sqlite-wal", "lock"}


def test_an_unknown_name_is_one_line_with_a_near_miss(world: World):
    result = world.lorabuild("verify", "embr")
    assert (result.code, len(result.err.splitlines())) == (2, 1) and 'did you mean "ember"?' in result.err


def test_outside_of_a_repository_it_says_so(tmp_path: Path):
    result = World(tmp_path).lorabuild("verify")
    assert result.code == 2 and "no repository here" in result.err


def test_a_trained_repository_is_whole_with_its_snapshots_and_base(built: World):
    told = json.loads(built.lorabuild("verify", "--json").out)
    assert not told["findings"] and {"base:tiny", "norms:tiny", "train:ember"} <= set(told["whole"])
    digest = lines(built, "ember")["train:ember"]["outputs"]["step/2"]["digest"]
    spoil(blob(built, digest))
    base = next((built.root / ".lorabuild/base/tiny/unet").glob("*.safetensors"))
    os.chmod(base, 0o644)
    spoil(base)
    found = verify(built, code=1)
    assert found == [f"changed file: {shown(built, base)}", f"damaged blob: {shown(built, blob(built, digest))}"]
    assert verify(built, "base", code=1) == found[:1]
