"""Two builds at once: one waits and says for whom; a killed one blocks nobody; who only reads does not wait."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import killing
import pytest
from quick_world import build, held_up, made

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for workers in /proc")


def lorabuild(root: Path, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lorabuild", *args]
    return subprocess.run(command, cwd=root, env=killing.environment(), capture_output=True, text=True, timeout=60)


def test_a_second_build_says_who_holds_the_lock_and_then_does_what_is_left(tmp_path: Path):
    root = made(tmp_path / "repository")
    with held_up(root, "train:ember", "ember") as (first, gate):
        second = killing.start(root, STANDIN_SECONDS="0")
        line = second.stdout.readline()
        assert f"another build runs here (process {first.pid}, since " in line
        assert second.poll() is None
        gate.touch()
        assert first.wait(60) == 0
        log = killing.latest(root)
        out, err = second.communicate(timeout=60)
    assert (second.returncode, err) == (0, ""), out
    assert {"train:moss", "chop:moss"} <= killing.events(root, "built", Path()) and killing.latest(root) >= log
    assert not any("ember" in job or "tiny" in job for job in killing.events(root, "built", Path()))


def test_a_killed_holder_blocks_nobody(tmp_path: Path):
    root = made(tmp_path / "repository")
    with held_up(root, "train:ember") as (first, _):
        waiting = killing.start(root, "ember", STANDIN_SECONDS="0")
        assert str(first.pid) in waiting.stdout.readline()
        killing.kill(first, "driver")  # the worker notices by itself
        out, err = waiting.communicate(timeout=60)
        assert (waiting.returncode, err) == (0, ""), out
    with held_up(root, "train:moss") as (second, _):
        killing.kill(second, "all")
        assert (root / ".lorabuild/holder.json").exists()
    done = build(root)
    assert done.code == 0 and "waiting" not in done.said
    assert "chop:moss" in done.built and "chop:ember" not in done.built


def test_who_only_reads_does_not_wait_for_a_build_and_disturbs_none(tmp_path: Path):
    root = made(tmp_path / "repository")
    with held_up(root, "train:ember") as (first, gate):
        log = killing.latest(root)
        for args, code in ((["plan"], 1), (["status"], 0), (["why", "chop:ember"], 1), (["list", "--all"], 0)):
            done = lorabuild(root, *args)
            assert "waiting" not in done.stdout + done.stderr and "Traceback" not in done.stderr
            assert done.returncode == code or args[0] == "why", (args, done)
        assert first.poll() is None and killing.latest(root) == log
        gate.touch()
        out, err = first.communicate(timeout=60)
        assert (first.returncode, err) == (0, ""), out
    assert lorabuild(root, "plan").returncode == 0
