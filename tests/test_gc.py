"""`lorabuild gc`: what it keeps, what it frees, and that a kill in the middle leaves a whole store."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from chops import age, blob, chops, commit, git, lines, lock, manifest, record, repository
from world import World

from lorabuild.locks.locked import Line
from lorabuild.locks.lockfile import read, text_of
from lorabuild.store import Output, Record, Store
from lorabuild.upkeep import garbage as module
from lorabuild.upkeep.garbage import Stock, free, garbage, take_stock
from lorabuild.upkeep.roots import Roots

CHOPS = {"a": '["TE"]', "b": '["OUT01"]', "c": '["IN*"]'}
NOTHING = Roots(frozenset(), frozenset(), frozenset())


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = chops(tmp_path_factory.mktemp("template") / "repository", "ember")
    repository(world)
    world.keys = {name: build(world, keep) for name, keep in CHOPS.items()}
    return world


@pytest.fixture
def world(once: World, tmp_path: Path) -> World:
    """A git repository whose project was built with each of CHOPS, the last one now; all of it is old."""
    world = once.copy(tmp_path / "repository")
    world.keys = once.keys
    age(world.root / ".lorabuild/store")
    return world


def build(world: World, keep: str) -> str:
    """Build with these blocks; the key of what is made."""
    manifest(world, "ember", keep=keep)
    assert world.doit().code == 0
    return lines(world, "ember")["chop:ember"]["key"]


def gc(world: World, *args: str) -> dict:
    result = world.lorabuild("gc", "--json", *args)
    assert result.code == 0, result.err
    return json.loads(result.out)


def kept(world: World) -> set[str]:
    """Which of the three chops still have a record; each with its blob, or not."""
    found = set()
    for name, key in world.keys.items():
        if record(world, key).exists():
            (output,) = json.loads(record(world, key).read_text())["outputs"].values()
            assert blob(world, output["digest"]).exists(), "a record names a missing blob"
            found.add(name)
    return found


def files(world: World) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in world.root.rglob("*") if path.is_file() and ".git/" not in str(path)
    }


# dry run


def test_gc_never_removes_without_yes(world: World):
    before = files(world)
    told = gc(world, "--days", "0")
    assert told["freed"] is False and told["kinds"]["records"]["count"] == told["kinds"]["blobs"]["count"] == 2
    after = files(world)
    changed = {Path(name).name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"state.sqlite", "state.sqlite-shm", "state.sqlite-wal"}  # what it has read, for the next look


def test_it_tells_count_and_size_by_kind_and_then_frees_just_that(world: World):
    told = gc(world)
    before = sum(path.stat().st_size for path in (world.root / ".lorabuild/store").rglob("*") if path.is_file())
    said = world.lorabuild("gc").out
    assert "records        2" in said and "would be freed" in said and "lorabuild gc --yes" in said
    assert gc(world, "--yes") == told | {"freed": True}
    after = sum(path.stat().st_size for path in (world.root / ".lorabuild/store").rglob("*") if path.is_file())
    assert before - after == told["bytes"]
    assert kept(world) == {"c"}
    assert world.lorabuild("gc").out.startswith("nothing to free")


def test_what_it_keeps_is_fresh_and_what_it_freed_is_built_again(world: World):
    gc(world, "--yes")
    assert world.doit().events == []
    manifest(world, "ember", keep=CHOPS["a"])
    assert world.doit().built == {"chop:ember"}


# roots


def test_gc_keeps_what_another_branchs_lock_names(world: World):
    git(world, "checkout", "-q", "-b", "other")
    build(world, CHOPS["a"])
    commit(world)
    git(world, "checkout", "-q", "main")
    build(world, CHOPS["c"])
    age(world.root / ".lorabuild/store")
    gc(world, "--yes", "--days", "0")
    assert kept(world) == {"a", "c"}
    git(world, "checkout", "-q", "-f", "other")
    assert world.doit().built == set()


@pytest.mark.parametrize("where", ["tag", "annotated tag", "remote", "stash", "old stash", "detached", "work tree"])
def test_gc_keeps_what_the_lock_of_any_ref_names(world: World, where: str, tmp_path: Path):
    build(world, CHOPS["a"])
    if "stash" in where:
        for _ in range(1 + (where == "old stash")):
            git(world, "stash", "-u")
            build(world, CHOPS["c"])
    else:
        git(world, "checkout", "-q", "-b", "other")
        commit(world)
        at = {
            "tag": ("tag", "v1"),
            "annotated tag": ("tag", "-a", "-m", "x", "v1"),
            "remote": ("update-ref", "refs/remotes/origin/other", "HEAD"),
            "work tree": ("worktree", "add", "-q", "--detach", str(tmp_path / "tree")),
        }.get(where)
        if at:
            git(world, *at)
        git(world, "checkout", "-q", "--detach" if where == "detached" else "main")
        git(world, "branch", "-q", "-D", "other")
        build(world, CHOPS["c"])
    age(world.root / ".lorabuild/store")
    gc(world, "--yes")
    assert kept(world) == {"a", "c"}


def test_gc_keeps_what_a_lock_in_a_folder_of_a_larger_repository_names(tmp_path: Path):
    outer = World(tmp_path / "outer")
    inner = chops(tmp_path / "outer/models/loras", "ember")
    key = build(inner, CHOPS["a"])
    repository(outer)
    git(outer, "add", "-f", "models/loras/projects/ember/lora.lock")
    commit(outer)
    build(inner, CHOPS["b"])
    gc(inner, "--yes", "--days", "0")
    assert record(inner, key).exists()


def test_a_lock_in_conflict_roots_both_sides(world: World):
    ours = lock(world, "ember").read_text()
    build(world, CHOPS["a"])
    theirs = lock(world, "ember").read_text()
    build(world, CHOPS["c"])
    world.write("projects/ember/lora.lock", f"<<<<<<< HEAD\n{ours}=======\n{theirs}>>>>>>> other\n")
    gc(world, "--yes", "--days", "0")
    assert kept(world) == {"a", "c"}


def test_what_was_built_last_stays_while_its_edit_is_not_built(world: World):
    lock(world, "ember").unlink()
    manifest(world, "ember", keep='["TE1", "OUT01"]')
    gc(world, "--yes")
    assert kept(world) == {"c"}


def test_a_pin_keeps_what_a_target_has_now(world: World):
    build(world, CHOPS["a"])
    assert world.lorabuild("gc", "--pin", "chop:ember").out == f"pinned chop:ember as {world.keys['a']}\n"
    build(world, CHOPS["c"])
    age(world.root / ".lorabuild/store")
    assert gc(world, "--yes", "--days", "0") and kept(world) == {"a", "c"}
    (world.root / ".lorabuild/pins").write_text("# a line less, and it goes\n")
    assert gc(world, "--yes", "--days", "0") and kept(world) == {"c"}


def test_a_pin_leaves_every_other_line_as_it_is(world: World):
    mine = f"# shown at the fair\n{world.keys['b']}\n\n# a last line without an end"
    world.write(".lorabuild/pins", mine)
    for _ in range(2):
        assert world.lorabuild("gc", "--pin", "chop:ember").code == 0
        assert (world.root / ".lorabuild/pins").read_text() == f"{mine}\n{world.keys['c']} chop:ember\n"


def test_a_pin_of_what_is_not_built_is_one_line(world: World):
    manifest(world, "ember", keep='["TE2"]')
    result = world.lorabuild("gc", "--pin", "ember")
    assert (result.code, len(result.err.splitlines())) == (1, 1) and "not built" in result.err
    assert world.lorabuild("gc", "--pin", "embr").code == 2


def test_what_is_young_stays(world: World):
    os.utime(record(world, world.keys["a"]))
    assert gc(world, "--yes") and kept(world) == {"a", "c"}
    assert gc(world, "--yes", "--days", "0") and kept(world) == {"c"}


def test_without_git_it_says_so_and_keeps_by_age(world: World):
    shutil.rmtree(world.root / ".git")
    os.utime(record(world, world.keys["b"]))
    result = world.lorabuild("gc", "--yes", "--json")
    assert "no git repository" in result.err and json.loads(result.out)["git"] is False
    assert kept(world) == {"b", "c"}


def test_a_git_that_cannot_be_asked_frees_nothing(world: World):
    (world.root / ".git/HEAD").write_text("nonsense")
    result = world.lorabuild("gc", "--yes", "--days", "0")
    assert (result.code, len(result.err.splitlines())) == (1, 1) and "git cannot be asked" in result.err
    assert kept(world) == {"a", "b", "c"}


@pytest.mark.parametrize("what", ["projects/ember/lora.lock", "projects/ember", "projects", ""])
def test_a_branch_of_which_git_lacks_an_object_frees_nothing(world: World, what: str):
    """As in a partial clone, which has only the files of its own branch."""
    git(world, "checkout", "-q", "-b", "other")
    build(world, CHOPS["a"])
    commit(world)
    lacking = git(world, "rev-parse", f"other:{what}").strip()
    git(world, "checkout", "-q", "main")
    build(world, CHOPS["c"])
    age(world.root / ".lorabuild/store")
    path = world.root / ".git/objects" / lacking[:2] / lacking[2:]
    path.rename(world.root.parent / "object")
    result = world.lorabuild("gc", "--yes", "--days", "0")
    assert (result.code, len(result.err.splitlines())) == (1, 1) and f"git lacks the object {lacking}" in result.err
    assert kept(world) == {"a", "b", "c"}
    (world.root.parent / "object").rename(path)
    assert gc(world, "--yes", "--days", "0") and kept(world) == {"a", "c"}


def test_a_branch_without_projects_and_a_tag_of_a_file_lack_nothing(world: World):
    git(world, "tag", "-a", "-m", "x", "file", "main:lorabuild.toml")
    git(world, "checkout", "-q", "--orphan", "empty")
    git(world, "rm", "-r", "-f", "-q", "--cached", ".")
    git(world, "commit", "-q", "-m", "x", "--allow-empty")
    git(world, "checkout", "-q", "-f", "main")
    assert gc(world, "--yes", "--days", "0") and kept(world) == {"c"}


def test_a_manifest_that_cannot_be_read_frees_nothing(world: World):
    world.write("projects/ember/lora.toml", "[chop")
    assert world.lorabuild("gc", "--yes", "--days", "0").code == 3
    assert kept(world) == {"a", "b", "c"}


def test_bytes_that_another_machine_has_under_the_same_key_do_not_cost_ours(world: World):
    """A lock that names theirs: our record stays, and what was made of it."""
    theirs = Line(world.keys["a"], {"weights": Output("0" * 32, 1)})
    world.write("projects/ember/lora.lock", text_of({"chop:ember": theirs}))
    commit(world)
    world.write("projects/ember/lora.lock", "")
    store = Store(world.root / ".lorabuild/store")
    made = next(iter(store.record(world.keys["a"]).outputs.values()))
    after = Record("chop", 2, {}, {"weights": made.digest}, {"weights": made})
    store.put_record("f" * 32, after)
    age(world.root / ".lorabuild/store")
    gc(world, "--yes", "--days", "0")
    assert kept(world) == {"a", "c"} and store.record("f" * 32) == after


def test_a_trained_repository_keeps_all_that_it_has(built: World):
    """Snapshots, pieces, bases, norms: nothing of a present manifest goes, however old."""
    age(built.root / ".lorabuild/store")
    before = {path for path in (built.root / ".lorabuild/store").rglob("*") if path.is_file()}
    told = gc(built, "--yes", "--days", "0")
    assert told["kinds"]["records"]["count"] == told["kinds"]["blobs"]["count"] == told["kinds"]["pieces"]["count"] == 0
    assert {path for path in (built.root / ".lorabuild/store").rglob("*") if path.is_file()} == before
    assert built.doit().events == []
    built.write("lorabuild.toml", "")
    shutil.rmtree(built.root / "projects/ember")
    told = gc(built, "--yes", "--days", "0")
    assert told["kinds"]["records"]["count"] == 8 and told["kinds"]["pieces"]["count"] > 0  # base and norms stay
    assert not [path for path in (built.root / ".lorabuild/store/piece").rglob("*") if path.is_file()]


# scratch, logs, and what is not ours


def test_scratch_that_nothing_wants_and_old_logs_go(world: World):
    wanted, unwanted, young = world.keys["c"], "1" * 32, "2" * 32
    for key in (wanted, unwanted, young):
        world.write(f".lorabuild/scratch/{key}/scratch/state", "x" * 10)
        world.write(f".lorabuild/scratch/{key}.lock", "")
    world.write(".lorabuild/logs/train-gone.log", "old")
    age(world.root / ".lorabuild/scratch")
    age(world.root / ".lorabuild/logs")
    os.utime(world.root / f".lorabuild/scratch/{young}/scratch/state")
    told = gc(world, "--yes")
    assert told["kinds"]["scratch"] == {"count": 1, "bytes": 10}
    assert {path.name for path in (world.root / ".lorabuild/scratch").iterdir() if path.is_dir()} == {wanted, young}
    assert not (world.root / f".lorabuild/scratch/{unwanted}.lock").exists()
    assert not list((world.root / ".lorabuild/logs").glob("*.log"))


def test_nothing_of_the_users_is_ever_removed(world: World):
    """Also not what somebody has put between our folders, old as it may be."""
    for name in ("build/mine.safetensors", ".lorabuild/mine", ".lorabuild/store/mine", ".lorabuild/logs/mine.txt"):
        world.write(name, "mine")
    for folder in (world.root, world.root / ".lorabuild"):
        age(folder)
    ours = (".lorabuild/store/record/", ".lorabuild/store/blob/", ".lorabuild/store/piece/", ".lorabuild/logs/")
    before = files(world)
    gc(world, "--yes", "--days", "0")
    gone = {str(Path(name).relative_to(world.root)) for name in before.keys() - files(world).keys()}
    assert gone and all(name.startswith(ours) for name in gone) and ".lorabuild/logs/mine.txt" not in gone


def test_gc_waits_for_a_build_only_when_it_frees(world: World):
    from filelock import FileLock

    with FileLock(world.root / ".lorabuild/lock"):
        assert gc(world)["freed"] is False


# the parts, on a store made by hand


def put(store: Store, key: str, stage: str, made: bytes, *of: bytes, days: float = 100, pieces: tuple = ()) -> Output:
    """A record and its blob, as old as that; `of` are the bytes that it was made from."""
    from lorabuild.hashing import digest_bytes

    store.parts.mkdir(parents=True, exist_ok=True)
    (store.parts / "x").write_bytes(made)
    output = store.put(store.parts / "x")
    inputs = {str(number): digest_bytes(one) for number, one in enumerate(of)}
    store.put_record(key, Record(stage, 1, {}, inputs, {"weights": output}, pieces))
    then = time.time() - days * 86_400
    for path in (store.blob(output.digest), store.record_path(key)):
        os.utime(path, (then, then))
    return output


def found(
    store: Store, roots: Roots = NOTHING, days: float = 14, max_bytes: float | None = None
) -> dict[str, set[str]]:
    stock = take_stock(store.root.parent, store)
    return {
        kind: {item.name for item in items}
        for kind, items in garbage(stock, roots, days, time.time(), max_bytes).items()
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".lorabuild/store")


def test_what_stays_keeps_what_it_was_made_from(store: Store):
    put(store, "train", "train", b"weights")
    put(store, "resize", "resize", b"resized", b"weights")
    put(store, "chop", "chop", b"chopped", b"resized")
    put(store, "else", "train", b"others")
    assert found(store, Roots(frozenset({"chop"}), frozenset(), frozenset()))["records"] == {"else"}


def test_a_wanted_snapshot_stays_and_another_goes(store: Store):
    put(store, "train", "train", b"weights")
    put(store, "train/step/2", "train", b"two")
    put(store, "train/step/4", "train", b"four")
    assert found(store, Roots(frozenset({"train", "train/step/2"}), frozenset(), frozenset()))["records"] == {
        "train/step/4"
    }
    assert found(store, Roots(frozenset(), frozenset({"train"}), frozenset()))["records"] == set()


def test_a_blob_that_two_records_name_stays_with_the_second(store: Store):
    put(store, "one", "chop", b"same")
    kept = put(store, "two", "chop", b"same", days=1)
    os.utime(store.blob(kept.digest), (0, 0))
    assert (found(store)["records"], found(store)["blobs"]) == ({"one"}, set())


def test_pieces_stay_with_the_record_that_lists_them(store: Store):
    for name in ("used", "unused"):
        path = store.pieces / "us" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    put(store, "latents", "latents", b"latents", pieces=("used",))
    assert found(store, Roots(frozenset({"latents"}), frozenset(), frozenset()))["pieces"] == {"unused"}


def test_an_old_record_that_cannot_be_read_goes(store: Store):
    put(store, "one", "chop", b"x")
    store.record_path("one").write_text("{")
    assert found(store)["records"] == set()  # young: whoever wrote it may be at it
    os.utime(store.record_path("one"), (0, 0))
    assert found(store)["records"] == {"one"}


def test_cheap_stages_are_kept_within_max_gb_the_youngest_first(store: Store):
    for number in range(4):
        put(store, f"chop{number}", "chop", bytes([number]) * 10, days=number)
    put(store, "train", "train", b"t" * 100, days=1)
    assert found(store)["records"] == set()
    crowded = found(store, max_bytes=25)
    assert crowded["records"] == {"chop2", "chop3"} and len(crowded["blobs"]) == 2
    rooted = found(store, Roots(frozenset({"chop3"}), frozenset(), frozenset()), max_bytes=25)
    assert rooted["records"] == {"chop1", "chop2"}


def test_max_gb_is_read_from_lorabuild_toml(world: World):
    for key in world.keys.values():
        os.utime(record(world, key))
    assert gc(world)["kinds"]["records"]["count"] == 0
    world.write("lorabuild.toml", '[build]\ndefault = ["chop"]\n[store]\nmax_gb = 1e-9\n')
    assert gc(world)["kinds"]["records"]["count"] == 2


def test_a_kill_in_the_middle_of_gc_leaves_no_record_that_names_a_missing_blob(store: Store, monkeypatch):
    for number in range(3):
        put(store, f"key{number}", "chop", bytes([number]))
    stock = take_stock(store.root.parent, store)
    doomed = garbage(stock, NOTHING, 14, time.time())
    assert sum(map(len, doomed.values())) == 6
    copy = store.root.parent.with_name("copy")
    for survived in range(6):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(store.root.parent, copy)
        moved = {
            kind: [
                module.Item(item.name, copy / item.path.relative_to(store.root.parent), item.bytes, item.modified)
                for item in items
            ]
            for kind, items in doomed.items()
        }
        under_way = free(moved)
        for _ in range(survived):
            next(under_way)
        under_way.close()  # killed
        left = Store(copy / "store")
        for number in range(3):
            one = left.record(f"key{number}")
            assert one is None or all(left.blob(output.digest).exists() for output in one.outputs.values())


def test_a_lock_file_names_what_a_parser_of_toml_reads(world: World):
    assert read(lock(world, "ember"))["chop:ember"].key == lines(world, "ember")["chop:ember"]["key"]
    assert isinstance(take_stock(world.root / ".lorabuild", Store(world.root / ".lorabuild/store")), Stock)
