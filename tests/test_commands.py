"""doit's verbs, targets and exit codes, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from world import World

from lorabuild import state
from lorabuild.errors import JobError
from lorabuild.graph import REFUSED
from lorabuild.session import opened


def test_an_unknown_target_is_one_line_with_a_near_miss(built: World):
    result = built.doit("chop:embr")
    assert result.code == 2
    assert result.err.strip() == 'chop:embr: no such target (did you mean "chop:ember"?); `doit list --all` shows them'


def test_an_unknown_option_is_exit_2(built: World):
    result = built.doit("--no-such-option")
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1


def test_a_project_a_stage_and_a_job_are_targets(built: World):
    for target in ("ember", "chop", "chop:ember"):
        assert built.doit(target).code == 0


def test_list_shows_stages_projects_and_jobs(built: World):
    short = built.doit("list")
    assert short.code == 0 and "ember" in short.out and "chop" in short.out and "chop:ember" not in short.out
    assert "chop:ember" in built.doit("list", "--all").out


def test_always_builds_the_target_anew_and_only_that(built: World):
    result = built.doit("-a", "chop:ember")
    assert result.ran == {"chop:ember": "built"}
    assert "about" in result.out


def test_always_encodes_latents_anew(built: World):
    result = built.doit("-a", "latents:ember")
    (event,) = result.events
    assert (event["event"], event["encoded"], event["reused"]) == ("built", 4, 0)


def test_clean_removes_files_in_build_and_the_store_restores_them(built: World):
    before = built.built_files()
    built.doit()
    dry = built.doit("clean", "-n", "chop:ember")
    assert "would remove build/ember/ember-chopped.safetensors" in dry.out
    assert built.built_files() == before
    built.doit("clean", "chop:ember")
    assert before.keys() - built.built_files().keys() == {"ember/ember-chopped.safetensors"}
    built.doit("clean")
    assert built.built_files() == {}
    assert set(built.doit().ran.values()) == {"restored"}
    assert built.built_files() == before


def test_forget_drops_the_record_so_that_it_is_built_again(built: World):
    assert built.doit("forget").code == 2  # everything is too much to forget by accident
    assert "forgot chop:ember" in built.doit("forget", "chop:ember").out
    assert built.doit().ran == {"chop:ember": "built"}


def test_lorabuild_is_doit_from_any_folder(built: World):
    result = subprocess.run(
        [sys.executable, "-m", "lorabuild", "build"], cwd=built.root / "projects/ember", capture_output=True, text=True
    )
    assert result.returncode == 0 and "nothing to do" in result.stdout
    result = subprocess.run([sys.executable, "-m", "lorabuild", "bild"], cwd=built.root, capture_output=True, text=True)
    assert result.returncode == 2 and 'did you mean "build"?' in result.stderr


def test_nothing_of_doits_is_left_in_the_repository(built: World):
    assert not list(built.root.glob(".doit*"))


def test_a_second_build_waits_and_says_for_whom(built: World):
    from filelock import FileLock

    lock = FileLock(built.root / ".lorabuild/lock")
    with lock:
        (built.root / ".lorabuild/holder.json").write_text('{"pid": 4711, "since": "12:00:00"}')
        waiting = subprocess.Popen([sys.executable, "-m", "doit"], cwd=built.root, stdout=subprocess.PIPE, text=True)
        line = waiting.stdout.readline()
        assert line.strip() == "warning: waiting: another build runs here (process 4711, since 12:00:00)"
        time.sleep(0.3)
        assert waiting.poll() is None
        assert built.doit("list").code == 0  # what only reads never waits
    assert waiting.wait(60) == 0


def test_a_closed_standard_output_is_nobody_to_tell(built: World):
    for words in ("-m doit", "-m lorabuild status", "-m lorabuild plan"):
        result = built.run("sh", "-c", f'"{sys.executable}" {words} >&-')
        assert (result.code, result.err) == (0, ""), words


def test_a_wrong_option_is_one_line(built: World):
    for words in (["--frob"], ["-n", "x"], ["-n", "-3"], ["list", "--json"]):
        result = built.doit(*words)
        assert result.code == 2 and len(result.err.splitlines()) == 1 and len(result.err) < 120, words


def test_verbs_that_read_work_where_nothing_can_be_written(built: World, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path):
        if path.parent == built.root / ".lorabuild":
            path = built.root / "nowhere" / path.name  # SQLite says what it would say of a folder that is read-only
        return really(path)

    really = state._open
    monkeypatch.setattr(state, "_open", refused)
    with opened(built.root, writing=False, building=False) as engine:
        assert all(engine.fresh(name) for name in engine.jobs)
    with pytest.raises(JobError), opened(built.root, writing=True, building=False):
        pass


def test_a_reader_that_goes_is_no_fault(built: World):
    for module in ("doit", "lorabuild"):
        reading, writing = os.pipe()
        os.close(reading)  # gone before a line is written
        command = [sys.executable, "-m", module, "list", "--all"]
        result = subprocess.run(command, cwd=built.root, stdout=writing, stderr=subprocess.PIPE, check=False)
        os.close(writing)
        assert (result.returncode, result.stderr) == (141, b""), module


def test_doits_own_books_are_not_kept_and_nobody_is_told_otherwise(built: World):
    for name in REFUSED:
        result = built.doit(name, "chop:ember")
        assert result.code == 2 and result.out == "" and len(result.err.splitlines()) == 1, result
