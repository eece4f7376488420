"""The parts of the engine, each by itself: store, state, reasons, run log."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from lorabuild.files import remove_empty, staged
from lorabuild.hashing import digest_bytes
from lorabuild.reasons import changes
from lorabuild.runlog import KEPT, RunLog
from lorabuild.signature import GRAIN_NS
from lorabuild.state import State
from lorabuild.store import Output, Record, Store
from lorabuild.workspace import Workspace


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state.sqlite")


def old(path: Path, data: bytes) -> Path:
    """A file that was written a minute ago."""
    path.write_bytes(data)
    then = time.time() - 60
    os.utime(path, (then, then))
    return path


def components(params: dict | None = None, version: int = 1, **inputs) -> dict:
    return {"version": version, "params": params or {}, "inputs": inputs}


# store


def test_a_blob_is_read_only_and_named_by_its_digest(tmp_path: Path):
    store = Store(tmp_path / "store")
    (tmp_path / "part").write_bytes(b"weights")
    output = store.put(tmp_path / "part")
    assert output == Output(digest_bytes(b"weights"), 7)
    blob = store.blob(output.digest)
    assert blob.read_bytes() == b"weights" and not blob.stat().st_mode & 0o222


def test_a_record_comes_back_and_a_damaged_one_is_none(tmp_path: Path):
    store = Store(tmp_path)
    record = Record("chop", 1, {"chop": {}}, {"weights": "ab"}, {"weights": Output("cd", 3)}, seconds=0.5)
    store.put_record("k" * 32, record)
    store.put_record("k" * 32 + "/step/10", record)
    assert store.record("k" * 32) == record
    store.record_path("k" * 32).write_bytes(b'{"stage": ')
    assert store.record("k" * 32) is None
    assert store.drop_record("k" * 32) and store.record("k" * 32 + "/step/10") is None


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path):
    path, parts = tmp_path / "build/file", tmp_path / "parts"
    with staged(path, parts) as part:
        part.write_bytes(b"old")
    with pytest.raises(RuntimeError), staged(path, parts) as part:
        part.write_bytes(b"half")
        assert part.parent == parts  # killed now, it would leave nothing beside the artifact
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"] and os.listdir(parts) == []


# state


def test_folders_that_are_left_empty_go_and_others_stay(tmp_path: Path):
    build = tmp_path / "build"
    for folder in ("ember/samples", "moss/samples"):
        (build / folder).mkdir(parents=True)
    (build / "moss/moss.safetensors").touch()
    for name in ("ember", "moss"):
        remove_empty(build / name / "samples", build)
    assert [path.name for path in build.rglob("*")] == ["moss", "moss.safetensors"]
    (build / "moss/moss.safetensors").unlink()
    remove_empty(build / "moss", build)
    assert list(tmp_path.iterdir()) == [build]
    remove_empty(tmp_path, build)
    assert tmp_path.exists(), "above the top, or beside it, nothing is touched"


def test_a_digest_is_remembered_by_the_files_stat(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch):
    path = old(tmp_path / "image", b"one")
    assert state.digest(path) == digest_bytes(b"one")
    monkeypatch.setattr("lorabuild.state.digest_file", lambda path: pytest.fail("read again"))
    assert state.digest(path) == digest_bytes(b"one")


def test_a_change_of_same_size_and_time_is_seen_by_its_ctime(tmp_path: Path, state: State):
    path = old(tmp_path / "image", b"one")
    stat = path.stat()
    state.digest(path)
    time.sleep(0.05)
    with open(path, "r+b") as file:
        file.write(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert state.digest(path) == digest_bytes(b"two")


def test_a_file_younger_than_the_clocks_grain_is_not_trusted(tmp_path: Path, state: State, monkeypatch):
    path = tmp_path / "image"
    path.write_bytes(b"one")
    monkeypatch.setattr("lorabuild.signature.time.time_ns", lambda: path.stat().st_mtime_ns + GRAIN_NS // 2)
    state.digest(path)
    assert state.known(path, (3, path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.stat().st_ino)) is None


def test_a_damaged_state_file_is_made_anew(tmp_path: Path):
    (tmp_path / "state.sqlite").write_bytes(b"not a database" * 100)
    assert State(tmp_path / "state.sqlite").last("chop:ember") is None


# pieces


def test_a_damaged_piece_is_made_again(tmp_path: Path):
    workspace = Workspace(tmp_path / "staging", tmp_path, tmp_path / "pieces")
    assert workspace.piece({"image": 1}, lambda: b"latent") == (b"latent", True)
    assert workspace.piece({"image": 1}, lambda: b"latent") == (b"latent", False)
    (file,) = [path for path in (tmp_path / "pieces").rglob("*") if path.is_file()]
    file.write_bytes(file.read_bytes()[:-1])
    assert workspace.piece({"image": 1}, lambda: b"latent") == (b"latent", True)


# reasons


def differences(old: dict, new: dict) -> list[str]:
    return [reason.text for reason in changes(old, new)]


def test_a_changed_value_is_named_with_both_values():
    was, now = components({"recipe": {"seed": 42, "lr": 1e-3}}), components({"recipe": {"seed": 43, "lr": 1e-3}})
    assert differences(was, now) == ["recipe.seed: 42 -> 43"]


def test_blocks_are_one_line():
    was, now = ({"chop": {"keep": {"OUT01": a, "OUT02": b, "TE1": 1.0}}} for a, b in ((1.0, 0.0), (0.0, 0.5)))
    assert differences(components(was), components(now)) == ["chop.keep: OUT01 1 -> 0, OUT02 0 -> 0.5"]


def test_files_are_told_by_name_and_a_renamed_one_is_neither_added_nor_removed():
    was = components(images={"a.png": "1", "b.png": "2", "c.png": "3"})
    now = components(images={"a.png": "9", "z.png": "2", "d.png": "4"})
    assert differences(was, now) == ["a.png: content", "d.png: added", "c.png: removed"]


def test_a_version_and_an_artifact_are_told():
    assert differences(components(version=1, weights="a"), components(version=2, weights="b")) == [
        "stage version: 1 -> 2",
        "weights: content",
    ]


def test_inputs_are_called_what_a_user_calls_them():
    told = {
        "weights": ["file", "a.safetensors"],
        "spectrum": ["input", "spectrum:ember", "spectrum"],
        "unet": ["base", "tiny"],
    }
    was, now = (components(weights=x, spectrum=x, unet=x) | {"told": {"from": told}} for x in ("a", "b"))
    assert differences(was, now) == ["spectrum:ember: content", "base tiny: unet: content", "a.safetensors: content"]


def test_what_a_size_counts_beside_the_weights_is_told_if_it_changes_by_itself():
    thr = components({"resize": {"thr": -3.0}})
    size, titled = ({"resize": {"size": 16.0, "header_kib": kib}} for kib in (8, 9))
    assert differences(thr, components(size, told="a")) == ["resize.size: unset -> 16", "resize.thr: -3 -> unset"]
    (project,) = differences(components(size, told="a"), components(titled, told="a"))
    (told,) = differences(components(size, told="a"), components(size, told="b"))
    assert project.startswith("[project]: ") and told.startswith(
        "other metadata of the source, or tags of the data set"
    )


# run log


def test_a_run_with_nothing_to_do_leaves_an_empty_file_and_old_ones_go(tmp_path: Path):
    for number in range(KEPT + 5):
        (tmp_path / f"2020-01-01T00-00-{number:02d}.0Z.jsonl").write_text("{}\n")
    (tmp_path / "2020-01-02T00-00-00.0Z.jsonl").touch()
    log = RunLog(tmp_path)
    assert (tmp_path / "latest.jsonl").resolve() == log.path and log.path.read_text() == ""
    log.write("chop:ember", "built", 0.0412, ["chop.keep: OUT01 1 -> 0"])
    assert json.loads(log.path.read_text()) == {
        "job": "chop:ember",
        "event": "built",
        "seconds": 0.041,
        "why": ["chop.keep: OUT01 1 -> 0"],
    }
    assert len(list(tmp_path.glob("*Z.jsonl"))) == KEPT


def test_a_line_of_the_run_log_is_whole_or_not_there(tmp_path: Path):
    """A file that may not grow any more takes a part of a write, as a disk that fills up does."""
    resource = pytest.importorskip("resource")
    log = RunLog(tmp_path)
    log.write("resize:ember", "built", 0.1, [])
    before = log.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            log.write("chop:ember", "built", 0.1, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(log.path) and log.path.read_bytes() == before
