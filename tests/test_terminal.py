"""What a build says at its end and where: a table on a terminal, JSON alone with --json, colours only where they show."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from standin import Stage

from lorabuild import colours
from lorabuild.ending import Ended, go_on, table
from lorabuild.progress import PlainFace, face

JOBS = [
    Ended("ember", "train", "built", 41.23, 3_700_000),
    Ended("ember", "chop", "restored", 0.04, 120_000),
    Ended("a-project-with-a-long-name@variant", "resize", "failed", 0.5, None),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


# the table


def test_the_table_has_project_stage_result_time_and_size():
    assert table(JOBS, 100, 24, colours=False) == [
        "project                             stage   result      time      size",
        "ember                               train   built     41.2 s    3.7 MB",
        "ember                               chop    restored   0.0 s  120.0 kB",
        "a-project-with-a-long-name@variant  resize  failed     0.5 s",
    ]


@pytest.mark.parametrize("width", range(10, 101))
def test_no_line_is_longer_than_the_terminal_and_every_result_is_there(width: int):
    lines = table(JOBS, width, 24, colours=False)
    assert max(map(len, lines)) <= max(width, 8 + 2 + 8)
    assert all(job.event in line for job, line in zip(JOBS, lines[1:], strict=True))


def test_results_have_colours_and_no_width_of_their_own():
    painted = table(JOBS, 100, 24, colours=True)
    assert "\033[32mbuilt   \033[0m" in painted[1] and "\033[31mfailed  \033[0m" in painted[3]
    assert [re.sub(r"\033\[\d+m", "", line) for line in painted] == table(JOBS, 100, 24, colours=False)


def test_more_jobs_than_the_screen_has_lines_are_a_line_a_project():
    jobs = [Ended(f"p{n}", stage, "built", 1.0, 1000) for n in range(9) for stage in ("train", "chop")]
    jobs.append(Ended("p8", "resize", "failed", 1.0, None))
    _, first, *_, last = lines = table(jobs, 100, 20, colours=True)
    assert len(lines) == 10
    assert first.split() == ["p0", "2", "stages", "2", "built", "2.0", "s", "2.0", "kB"]
    assert "\033[31m2 built, 1 failed\033[0m" in last


def test_a_single_job_has_told_of_itself():
    assert table(JOBS[:1], 100, 24, colours=False) == []


def test_the_command_that_goes_on_has_what_was_typed_but_not_always_anew():
    assert go_on("doit", [], 0, False) == "doit"
    assert go_on("lorabuild build", ["chop:ember"], 4, True) == "lorabuild build -n 4 --continue chop:ember"


# colours


@pytest.mark.parametrize(
    ("out", "environment", "painted"),
    [
        (Terminal(), {}, True),
        (io.StringIO(), {}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    out: io.StringIO, environment: dict[str, str], painted: bool, monkeypatch: pytest.MonkeyPatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert colours.coloured(out) is painted
    plain = PlainFace(out)
    plain.finished("chop:built", "built", 0.1, [])
    plain.failed("train:x", "no\nend \033[2J")
    plain.warn("look")
    said = out.getvalue()
    assert ("\033[32mbuilt\033[0m in 0.1 s" in said) is painted
    assert ("\033[31mFAILED\033[0m" in said) is painted and ("\033[33mwarning:\033[0m look" in said) is painted
    assert re.sub(r"\033\[\d+m", "", said) == (
        "chop:built built in 0.1 s\ntrain:x FAILED: no\\nend \\x1b[2J\nwarning: look\n"
    )
    out.truncate(0)
    out.seek(0)


def test_a_dumb_terminal_has_plain_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert type(face()) is not PlainFace
    monkeypatch.setenv("TERM", "dumb")
    assert type(face()) is PlainFace


# a build, on a terminal and as JSON


def on_a_terminal(stage: Stage, *args: str, columns: int = 72, **env: str) -> str:
    """What a terminal of that width shows of `doit`."""
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "doit", *args],
        cwd=stage.world.root, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"} | stage.env | env,
    )  # fmt: skip
    os.close(theirs)
    said, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                read = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not read:
                break
            said += read
    os.close(ours)
    assert process.wait(60) in (0, 1)
    return said.decode()


def test_a_terminal_shows_a_table_at_the_end_and_one_line_if_all_is_fresh(tmp_path: Path):
    stage = Stage(tmp_path, 2, train_p1="fail")
    said = on_a_terminal(stage, "--continue", columns=50)
    lines = re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", said).replace("\r\n", "\n").splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.startswith("project ")]
    *rows, summed_up, failed, on = lines[head + 1 :]
    assert "\033[32mbuilt" in said and "\033[31mfailed" in said
    assert ["p1", "train", "failed"] in [row.split()[:3] for row in rows] and all(len(row) <= 50 for row in rows)
    assert re.match(r"\d+ built, 1 failed, \d+ not run", summed_up)
    assert failed.startswith("failed: train:p1: ") and "(log: .lorabuild/logs/train-p1.log)" in failed
    assert on == "once that is mended, `doit --continue` goes on from here"
    stage.plan()
    assert stage.doit().code == 0
    fresh = on_a_terminal(stage, NO_COLOR="1")
    assert re.fullmatch(r"nothing to do: \d+ jobs are fresh\r\n", fresh)


def test_json_is_alone_on_stdout_and_tells_what_was_done(tmp_path: Path):
    stage = Stage(tmp_path, 2, train_p1="fail")
    result = stage.doit("--continue", "--json", FORCE_COLOR="1")
    told = json.loads(result.out)
    assert result.code == told["exit_code"] == 1
    assert "train:p1" in result.err and "once that is mended" in result.err
    jobs = {job["job"]: job for job in told["jobs"]}
    assert {name: job["event"] for name, job in jobs.items()} == result.ran
    assert jobs["train:p1"]["log"] == ".lorabuild/logs/train-p1.log" and jobs["train:p1"]["bytes"] is None
    published = stage.world.root.glob("build/p0/p0-chopped.safetensors")
    assert jobs["chop:p0"]["bytes"] == sum(path.stat().st_size for path in published) > 0
    assert jobs["chop:p0"]["why"] == ["never built"] and jobs["chop:p0"]["log"] is None
    assert told["counts"]["failed"] == 1 and told["counts"]["not run"] > 0
    stage.plan()
    again = stage.doit("p0", "--json")  # doit itself takes no option behind a target
    fresh = json.loads(again.out)
    assert (fresh["jobs"], fresh["removed"], fresh["exit_code"]) == ([], [], 0) and set(fresh["counts"]) == {"fresh"}
    mistake = stage.doit("p00", "--json")
    assert (mistake.code, mistake.out) == (2, "") and "did you mean" in mistake.err


def test_every_key_of_the_json_is_documented(tmp_path: Path):
    told = json.loads(Stage(tmp_path).doit("--json").out)
    page = (Path(__file__).resolve().parents[1] / "docs/terminal.md").read_text()
    keys = {*told, *told["jobs"][0], *told["counts"]}
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_an_interrupted_build_has_its_json_too(tmp_path: Path):
    stage = Stage(tmp_path, 1, train_p0="train 400")
    process = subprocess.Popen(
        [sys.executable, "-m", "doit", "--json"],
        cwd=stage.world.root, env=os.environ | stage.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    stage.wait_for("trains")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    told = json.loads(out)
    assert process.returncode == told["exit_code"] == 130 and "interrupted after" in err
    (stopped,) = (job for job in told["jobs"] if job["event"] == "stopped")
    assert stopped["job"] == "train:p0" and re.match(r"step \d+ of 400", stopped["why"][0])
