"""Builds with a remote store: what one machine has built, no other builds; a remote that fails, fails no build."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from s3 import S3
from world import Result, World

from lorabuild.hashing import digest_file
from lorabuild.remotes.transport import Folder

# `doit` as ever, but for how long it waits for a remote.
IMPATIENT = """
import sys, lorabuild.remotes.transport as transport
transport.PATIENCE_SECONDS, transport.PAUSE_SECONDS = 2.0, 0.01
from lorabuild.graph import main
from pathlib import Path
sys.exit(main(["run", *sys.argv[1:]], Path.cwd()))
"""
OTHER = '["TE", "OUT02"]'


def uses(world: World, url: str, more: str = "") -> World:
    world.write("lorabuild.local.toml", f'[store]\nremote = "{url}"\n{more}')
    return world


def impatient(world: World, *args: str) -> Result:
    return world.run(sys.executable, "-c", IMPATIENT, *args)


def warnings(result: Result) -> list[str]:
    assert "Traceback" not in result.out + result.err, result.out + result.err
    return [line for line in (result.out + result.err).splitlines() if line.startswith("warning:")]


def blobs_are_whole(world: World) -> bool:
    blobs = [path for path in (world.root / ".lorabuild/store/blob").rglob("*") if path.is_file()]
    return bool(blobs) and all(digest_file(path) == path.name for path in blobs)


def fresh_clone(world: World, root: Path) -> World:
    """What git would give: no store, nothing built."""
    shutil.copytree(world.root, root, ignore=shutil.ignore_patterns(".lorabuild", "build"))
    return World(root)


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3").url(tmp_path.name)
    return f"file://{tmp_path}/remote"


@pytest.fixture(scope="module")
def uploaded(one_s3: S3, built_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A repository with another chop, which lies on a remote, too."""
    world = uses(built_once.copy(tmp_path_factory.mktemp("uploaded") / "repository"), one_s3.url("uploaded"))
    world.manifest(keep=OTHER)
    assert world.doit(**one_s3.environment).ran == {"chop:ember": "built"}
    return world


@pytest.fixture
def edited(s3: S3, uploaded: World, built: World, tmp_path: Path) -> tuple[World, dict[str, bytes]]:
    """A repository whose other chop lies on the remote alone, and the files that should come of it."""
    there, here = Folder(s3.url("uploaded")), Folder(s3.url(tmp_path.name))
    for name in there.sizes("v1"):
        here.upload(name, there.read(name))
    uses(built, s3.url(tmp_path.name)).manifest(keep=OTHER)
    return built, uploaded.built_files()


def test_a_clone_with_a_remote_builds_nothing(built: World, url: str, tmp_path: Path):
    assert uses(built, url).lorabuild("push").code == 0
    clone = fresh_clone(built, tmp_path / "clone")
    result = clone.doit()
    assert result.code == 0 and set(result.ran.values()) == {"restored"} and len(result.ran) == 8, result.out
    assert all("from the remote" in result.why(job) for job in result.ran)
    assert clone.built_files() == built.built_files()
    assert clone.doit().events == []
    assert warnings(result) == []


def test_what_is_built_is_uploaded_at_once(built: World, url: str, tmp_path: Path):
    other = built.copy(tmp_path / "other")
    uses(built, url).manifest(keep=OTHER)
    assert built.doit().ran == {"chop:ember": "built"}
    uses(other, url).manifest(keep=OTHER)
    assert other.doit().ran == {"chop:ember": "restored"}
    assert other.built_files() == built.built_files()


def test_a_reverted_edit_and_another_branch_build_nothing(built: World, tmp_path: Path):
    uses(built, f"file://{tmp_path}/remote").manifest(keep=OTHER)
    assert built.doit().built == {"chop:ember"}
    built.manifest()
    assert built.doit().built == set()
    built.manifest(keep=OTHER)
    assert built.doit().built == set()


def test_snapshots_come_along(built: World, tmp_path: Path):
    uses(built, f"file://{tmp_path}/remote").lorabuild("push")
    clone = fresh_clone(built, tmp_path / "clone")
    assert clone.doit("train:ember").built == set()
    steps = [path.name for path in (clone.root / ".lorabuild/store/record").rglob("*.step.*.json")]
    assert len(steps) == 2 and (clone.root / "build/ember/ember-step00000002.safetensors").exists()


def test_a_read_only_remote_gets_nothing(built: World, tmp_path: Path):
    uses(built, f"file://{tmp_path}/remote", "read_only = true\n").manifest(keep=OTHER)
    result = built.doit()
    assert result.built == {"chop:ember"} and warnings(result) == []
    assert not (tmp_path / "remote").exists()


def test_an_empty_remote_in_the_local_file_is_none(built: World, tmp_path: Path):
    built.write("lorabuild.toml", f'[store]\nremote = "file://{tmp_path}/remote"\n')
    built.write("lorabuild.local.toml", '[store]\nremote = ""\n')
    built.manifest(keep=OTHER)
    assert built.doit().built == {"chop:ember"} and not (tmp_path / "remote").exists()


def test_nothing_to_do_asks_nobody(built: World, s3: S3, tmp_path: Path):
    uses(built, s3.url(tmp_path.name)).doit()
    s3.requests.clear()
    result, _ = built.imports()
    assert result.events == [] and s3.requests == []
    assert "fsspec" not in result.err and "s3fs" not in result.err


def test_built_anew_the_remote_is_not_asked(edited: tuple[World, dict[str, bytes]], s3: S3):
    world, good = edited
    s3.requests.clear()
    assert world.doit("-a", "chop:ember").ran == {"chop:ember": "built"}
    assert world.built_files() == good
    assert [path for method, path in s3.requests if method == "GET" and "/blob/" in path] == []


# faults


@pytest.mark.parametrize("fault", ["500", "cut", "slow", "corrupt", "corrupt unnoticed"])
def test_a_remote_that_cannot_be_read_fails_no_build(edited: tuple[World, dict[str, bytes]], s3: S3, fault: str):
    world, good = edited
    s3.fails(fault, "GET", "/blob/")
    result = impatient(world)
    assert (result.code, result.ran) == (0, {"chop:ember": "built"}), result.out
    assert len(warnings(result)) == 1 and "remote store s3://shared" in warnings(result)[0]
    assert world.built_files() == good and blobs_are_whole(world)


@pytest.mark.parametrize("fault", ["cut", "slow"])
def test_a_remote_that_is_down_is_asked_no_second_time(built: World, s3: S3, tmp_path: Path, fault: str):
    uses(built, s3.url(tmp_path.name)).manifest(keep=OTHER, thr=-2.8)
    s3.fails(fault)
    result = impatient(built)
    assert (result.code, result.built) == (0, {"resize:ember", "chop:ember"})
    assert len(warnings(result)) == 1 and len([path for _, path in s3.requests if "list-type" in path]) == 3
    assert blobs_are_whole(built)


@pytest.mark.parametrize(("fault", "part"), [("500", "/blob/"), ("cut", "/record/"), ("slow", "/record/")])
def test_a_failed_upload_is_one_warning_and_push_makes_up_for_it(
    built: World, s3: S3, tmp_path: Path, fault: str, part: str
):
    uses(built, s3.url(tmp_path.name)).manifest(keep=OTHER, thr=-2.8)
    s3.fails(fault, "PUT", part)
    result = impatient(built)
    assert (result.code, result.built) == (0, {"resize:ember", "chop:ember"})
    assert len(warnings(result)) == 1 and "lorabuild push" in warnings(result)[0]
    s3.fault = lambda method, path: None
    assert built.lorabuild("push").code == 0
    clone = fresh_clone(built, tmp_path / "clone")
    assert clone.doit().built == set() and clone.built_files() == built.built_files()


def test_a_fault_that_passes_is_not_even_told(edited: tuple[World, dict[str, bytes]], s3: S3):
    world, good = edited
    s3.fails("500", times=2)
    result = impatient(world)
    assert result.ran == {"chop:ember": "restored"} and warnings(result) == []
    assert world.built_files() == good


def test_a_corrupted_blob_on_the_remote_is_built_here_and_mended_there(
    built: World, edited: tuple[World, dict[str, bytes]], s3: S3, tmp_path: Path
):
    world, good = edited
    third = world.copy(tmp_path / "third")
    folder = Folder(s3.url(tmp_path.name))
    for name, size in folder.sizes("v1/blob").items():
        folder.upload(name, b"x" * size, replace=True)
    result = world.doit()
    assert result.ran == {"chop:ember": "built"} and len(warnings(result)) == 1 and "damaged" in warnings(result)[0]
    assert world.built_files() == good and blobs_are_whole(world)
    assert third.doit().ran == {"chop:ember": "restored"} and third.built_files() == good


def test_without_the_package_a_build_goes_on(built: World):
    uses(built, "gs://bucket/prefix").manifest(keep=OTHER)
    result = built.run(sys.executable, "-c", "import sys; sys.modules['gcsfs'] = None" + IMPATIENT)
    assert result.built == {"chop:ember"}
    (said,) = warnings(result)
    assert "pip install 'lorabuild[gs]'" in said


def test_a_record_says_from_which_others_it_was_made(built: World):
    records = {}
    for path in (built.root / ".lorabuild/store/record").rglob("*.json"):
        record = json.loads(path.read_bytes())
        records[record["stage"]] = path.stem, record["made_from"]
    assert records["chop"][1] == {"weights": records["resize"][0]}
    assert records["spectrum"][1]["norms"] == records["norms"][0]
