"""Lock files: what stands in them, when a line is rewritten and when not, and what becomes of a broken one."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chops import blob, chops, commit, git, lines, lock, manifest, record, repository
from world import World

from lorabuild.inputs import Resolved, key_of
from lorabuild.locks.locked import Line
from lorabuild.locks.lockfile import Locks, line_of, parse, read, text_of
from lorabuild.stage import Artifact, Job
from lorabuild.store import Output


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = chops(tmp_path / "repository", "ember")
    assert world.doit().built == {"chop:ember"}
    return world


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def hand_over(world: World, **changes: Any) -> None:
    """Change the line of chop:ember, as another machine would have written it."""
    line = read(lock(world, "ember"))["chop:ember"]
    (output,) = line.outputs.values()
    new = Line(changes.get("key", line.key), {"weights": Output(changes.get("digest", output.digest), output.size)})
    lock(world, "ember").write_text(text_of({"chop:ember": new}))


# what stands in it


def test_a_line_has_the_key_and_each_outputs_digest_and_size(world: World):
    (line,) = lines(world, "ember").values()
    made = json.loads(record(world, line["key"]).read_text())
    assert line["outputs"] == made["outputs"]
    assert blob(world, line["outputs"]["weights"]["digest"]).stat().st_size == line["outputs"]["weights"]["size"]


def test_it_is_one_sorted_line_a_job_below_a_comment_that_says_what_it_is(world: World):
    manifest(world, "ember", variants={"mini": '["TE"]', "all": '["*"]'})
    world.doit()
    text = lock(world, "ember").read_text().splitlines()
    said, rows = [row for row in text if row[0] == "#"], [row for row in text if row[0] != "#"]
    assert "derived" in " ".join(said) and "lorabuild pull" in " ".join(said)
    assert [row.split(" = ")[0] for row in rows] == ['"chop:ember"', '"chop:ember@all"', '"chop:ember@mini"']
    form = r'"chop:ember" = \{ key = "\w{32}", outputs = \{ weights = \{ digest = "\w{32}", size = \d+ \} \} \}'
    assert re.fullmatch(form, rows[0])


def test_what_is_written_is_read_again():
    outputs = {"step/10": Output("d" * 32, 3), "facts.json": Output("e" * 32, 4)}
    written = {"train:a": Line("a" * 32, outputs), "b:c": Line("b" * 32, {})}
    assert parse(text_of(written)) == written


def test_a_trained_project_locks_each_stage_its_snapshots_and_the_norms_that_it_used(built: World):
    found = lines(built, "ember")
    stages = ("dataset", "latents", "train", "spectrum", "resize", "chop")
    assert found.keys() == {f"{stage}:ember" for stage in stages} | {"norms:tiny"}
    assert {"weights", "step/2", "step/4"} <= found["train:ember"]["outputs"].keys()
    before = stamp(lock(built, "ember"))
    assert built.doit().events == []
    assert stamp(lock(built, "ember")) == before


# when it is written


def test_a_build_with_nothing_to_do_writes_nothing(world: World):
    before = stamp(lock(world, "ember"))
    assert world.doit().events == []
    assert stamp(lock(world, "ember")) == before


def test_a_lock_line_is_rewritten_only_when_its_key_changes(world: World):
    hand_over(world, digest="0" * 32)
    before, then = lock(world, "ember").read_text(), stamp(lock(world, "ember"))
    manifest(world, "ember", title="Two")
    assert world.doit().ran == {"chop:ember": "published"}
    shutil.rmtree(world.root / "build")
    assert world.doit().ran == {"chop:ember": "restored"}
    assert world.doit("-a", "chop:ember").ran == {"chop:ember": "built"}
    assert (lock(world, "ember").read_text(), stamp(lock(world, "ember"))) == (before, then)
    manifest(world, "ember", keep='["TE"]')
    world.doit()
    after = lines(world, "ember")["chop:ember"]
    assert after["outputs"]["weights"]["digest"] != "0" * 32 and after["key"] not in before


def test_a_job_that_is_only_found_fresh_gets_its_line(world: World):
    before = lock(world, "ember").read_text()
    lock(world, "ember").unlink()
    assert world.doit().events == []
    assert lock(world, "ember").read_text() == before


def test_a_restored_job_gets_its_line_back(world: World):
    before = lock(world, "ember").read_text()
    manifest(world, "ember", keep='["TE"]')
    world.doit()
    manifest(world, "ember")
    assert world.doit().ran == {"chop:ember": "restored"}
    assert lock(world, "ember").read_text() == before


def test_lines_of_jobs_that_are_no_more_go(world: World):
    manifest(world, "ember", variants={"mini": '["TE"]'})
    world.doit()
    assert lines(world, "ember").keys() == {"chop:ember", "chop:ember@mini"}
    manifest(world, "ember")
    assert world.doit().events == []
    assert lines(world, "ember").keys() == {"chop:ember"}


def test_a_failed_job_keeps_the_line_of_its_last_success(world: World):
    before = lock(world, "ember").read_text()
    manifest(world, "ember", keep='["OUT08"]')  # the file has none
    assert world.doit().code == 1
    assert lock(world, "ember").read_text() == before


def test_a_command_that_only_reads_writes_no_lock(world: World):
    lock(world, "ember").unlink()
    assert world.doit("list", "--all", "--status").code == 0
    assert not lock(world, "ember").exists()


# what is broken


def test_a_conflicted_lock_is_rewritten_with_one_warning(world: World):
    whole = lock(world, "ember").read_text()
    row = whole.splitlines()[-1]
    other = re.sub(r'key = "\w+"', f'key = "{"1" * 32}"', row)
    comment = "\n".join(whole.splitlines()[:-1])
    lock(world, "ember").write_text(f"{comment}\n<<<<<<< HEAD\n{row}\n=======\n{other}\n>>>>>>> other\n")
    result = world.doit()
    assert (result.code, result.events) == (0, [])
    warnings = [line for line in result.out.splitlines() if "warning" in line]
    assert warnings == ["warning: ember/lora.lock is in conflict or damaged: it is derived, and written anew"]
    assert lock(world, "ember").read_text() == whole


def test_of_a_conflicted_lock_what_both_sides_have_alike_stays(tmp_path: Path):
    alike, ours, theirs = (
        text_of({name: Line(key * 32, {})}) for name, key in (("a:x", "1"), ("b:x", "2"), ("b:x", "3"))
    )
    (tmp_path / "lora.lock").write_text(f"{alike}<<<<<<< HEAD\n{ours}=======\n{theirs}>>>>>>> other\n")
    jobs = {name: Job(name, {}, {}, []) for name in ("a:x", "b:x", "c:x")}
    locks = Locks({"x": tmp_path}, jobs, tmp_path / "parts")
    locks.note(Stands(jobs["c:x"], "4" * 32), now=True)
    assert read(tmp_path / "lora.lock") == {"a:x": Line("1" * 32, {}), "c:x": Line("4" * 32, {})}


@pytest.mark.parametrize(
    "text",
    [
        "\x00\xff",
        "chop = 1\n",
        '"chop:ember" = { key = "a" }\n',
        '"chop:ember" = { key = "../x", outputs = {} }\n',
        "[",
        "",
    ],
)
def test_an_unreadable_lock_is_derived_data(world: World, text: str):
    whole = lock(world, "ember").read_text()
    lock(world, "ember").write_bytes(text.encode("latin1"))
    result = world.doit()
    assert (result.code, result.events, result.out.count("warning")) == (0, [], int(text != ""))
    assert lock(world, "ember").read_text() == whole


def test_a_merge_of_two_branches_is_mended_by_a_build(world: World):
    repository(world)
    for branch, keep in (("one", '["TE"]'), ("two", '["OUT01"]')):
        git(world, "checkout", "-q", "-b", branch, "main")
        manifest(world, "ember", keep=keep)
        world.doit()
        commit(world)
    git(world, "merge", "one")
    assert "<<<<<<<" in lock(world, "ember").read_text()
    manifest(world, "ember", keep='["TE"]')
    result = world.doit()
    assert result.built == set() and result.code == 0
    assert lock(world, "ember").read_text() == git(world, "show", "one:projects/ember/lora.lock")


def test_a_lock_that_cannot_be_written_is_one_line_and_loses_nothing(world: World):
    manifest(world, "ember", keep='["TE"]')
    lock(world, "ember").unlink()
    lock(world, "ember").mkdir()
    (lock(world, "ember") / "full").touch()
    result = world.doit()
    assert result.code == 1 and "lora.lock" in result.out and "Traceback" not in result.out + result.err
    shutil.rmtree(lock(world, "ember"))
    assert world.doit().built == set()
    assert lines(world, "ember").keys() == {"chop:ember"}


# git


def test_revert_and_branch_switch_build_nothing_and_leave_git_clean(world: World):
    repository(world)
    git(world, "checkout", "-q", "-b", "other")
    manifest(world, "ember", keep='["TE"]')
    assert world.doit().built == {"chop:ember"}
    commit(world)
    for branch in ("main", "other", "HEAD~1"):
        git(world, "checkout", "-q", branch)
        assert world.doit().built == set()
        assert git(world, "status", "--porcelain") == ""


# other bytes under the same key


@dataclass(frozen=True)
class Stands:
    """A job that is built, without an engine."""

    job: Job
    key: str
    inputs: Any = None
    outputs: Any = None
    components: Any = None

    def __post_init__(self) -> None:
        for name, value in (("inputs", {}), ("outputs", {}), ("components", {"version": 1})):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


def chain(train_bytes: str, resize_bytes: str, thr: int = 1) -> list[Stands]:
    """train -> resize, on a machine that makes these bytes of them."""
    train = Job("train:x", {}, {}, ["weights"])
    resize = Job("resize:x", {"resize": {"thr": thr}}, {"weights": Artifact("train:x", "weights")}, ["weights"])
    inputs = {"weights": Resolved(train_bytes)}
    key = key_of("resize", 1, resize.params, inputs)
    return [
        Stands(train, "k", outputs={"weights": Output(train_bytes, 1)}),
        Stands(resize, key, inputs, {"weights": Output(resize_bytes, 1)}),
    ]


def locked(*made: Stands) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    for one in made:
        lines[one.job.name] = line_of(one, lines)
    return lines


def test_other_bytes_under_the_same_key_change_no_line_not_even_of_the_jobs_after_it():
    lines = locked(*chain("theirs", "their resize"))
    for made in chain("ours", "our resize"):
        assert line_of(made, lines) == lines[made.job.name]


def test_another_setting_changes_the_line_on_whatever_bytes():
    lines = locked(*chain("theirs", "their resize"))
    train, resize = chain("ours", "our resize", thr=2)
    assert line_of(train, lines) == lines["train:x"]
    assert line_of(resize, lines) == Line(resize.key, resize.outputs)


def test_a_new_snapshot_joins_the_line_and_what_it_had_stays():
    job = Job("train:x", {}, {}, ["weights"], ["step/2"])
    lines = {"train:x": Line("k", {"weights": Output("theirs", 1), "step/1": Output("gone", 1)})}
    made = Stands(job, "k", outputs={"weights": Output("ours", 1), "step/2": Output("new", 1)})
    assert line_of(made, lines) == Line("k", {"weights": Output("theirs", 1), "step/2": Output("new", 1)})


def test_what_waits_is_written_at_the_end_and_what_was_built_at_once(tmp_path: Path):
    jobs = {name: Job(name, {}, {}, []) for name in ("a:x", "b:x")}
    locks = Locks({"x": tmp_path}, jobs, tmp_path / "parts")
    locks.note(Stands(jobs["a:x"], "1" * 32), now=False)
    assert read(tmp_path / "lora.lock") == {}
    locks.flush()
    assert read(tmp_path / "lora.lock").keys() == {"a:x"}
    locks.note(Stands(jobs["b:x"], "2" * 32), now=True)
    assert read(tmp_path / "lora.lock").keys() == {"a:x", "b:x"}


def test_a_project_that_needs_no_look_gets_one_if_its_lock_is_gone_or_edited(world: World):
    """The lock is among the files that a clean project is known by."""
    from lorabuild.session import opened

    def clean() -> set[str]:
        with opened(world.root, writing=False, building=False, wanted=frozenset()) as engine:
            return set(engine.clean)

    whole = lock(world, "ember").read_text()
    for spoiled in (None, "", whole + '"chop:gone" = { key = "11111111111111111111111111111111", outputs = {} }\n'):
        world.doit()
        world.doit()
        assert clean() == {"ember"}
        lock(world, "ember").unlink() if spoiled is None else lock(world, "ember").write_text(spoiled)
        assert clean() == set()
        assert world.doit().events == []
        assert lock(world, "ember").read_text() == whole
