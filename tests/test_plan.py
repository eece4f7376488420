"""`lorabuild plan` foretells what `doit` then does, and touches nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from world import World

from lorabuild import graph
from lorabuild.forecast.estimate import Steps
from lorabuild.forecast.outlook import in_order
from lorabuild.stage import Artifact, Component, Job
from lorabuild.verbs.plan import main
from lorabuild.workers.pool import Pool


def planned(world: World, *targets: str) -> dict[str, Any]:
    result = world.lorabuild("plan", "--json", *targets)
    found = json.loads(result.out)
    assert result.code == (1 if found["stale"] else 0), result.err
    assert found["stale"] == bool(found["jobs"])
    return found


def events(plan: dict[str, Any]) -> dict[str, str]:
    return {job["job"]: job["event"] for job in plan["jobs"]}


def kept(world: World) -> dict[str, bytes]:
    """All that is there but the state, which is a cache."""
    files = (path for path in sorted(world.root.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in files if not path.name.startswith("state.sqlite")}


def blob(world: World, stage: str, role: str = "weights") -> Path:
    """The store's file of what a stage made."""
    for path in (world.root / ".lorabuild/store/record").rglob("*.json"):
        record = json.loads(path.read_text())
        if record["stage"] == stage and role in record["outputs"]:
            digest = record["outputs"][role]["digest"]
            return world.root / ".lorabuild/store/blob" / digest[:2] / digest
    raise AssertionError(f"no record of {stage}")


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-8] + b"corrupt!")


def edit(world: World, old: str, new: str) -> None:
    path = world.root / "projects/ember/lora.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# what it says, and what then happens


def another_title_and_a_deleted_file(world: World) -> None:
    world.manifest(title='title = "Ember"')
    (world.root / "build/ember/ember-chopped.safetensors").unlink()


def another_threshold_and_junk(world: World) -> None:
    world.manifest(thr=-2.8)
    (world.root / "build/ember/dataset.json").write_text("junk")


def renamed(world: World) -> None:
    for name in ("1.png", "1.txt"):
        path = world.root / "projects/ember/images" / name
        path.rename(path.with_stem("z"))


def there_and_back(world: World) -> None:
    world.manifest(keep='["TE"]', thr=-2.8)
    world.doit()
    world.manifest()


def a_twin(world: World) -> None:
    world.project("twin")


def a_new_twin_of_an_edited_project(world: World) -> None:
    world.project(seed=8)
    world.project("twin", seed=8)


EDITS: dict[str, tuple[Callable[[World], Any], dict[str, str]]] = {
    "nothing": (lambda world: None, {}),
    "a renamed image": (renamed, {}),
    "a renamed image and a caption": (
        lambda world: (renamed(world), world.write("projects/ember/images/2.txt", "ember, red, sit, 2, again")),
        {"dataset:ember": "built", "latents:ember": "maybe", "train:ember": "maybe"},
    ),
    "keep": (lambda world: world.manifest(keep='["TE"]'), {"chop:ember": "built"}),
    "title and deleted": (
        another_title_and_a_deleted_file,
        {"train:ember": "published", "resize:ember": "published", "chop:ember": "restored"},
    ),
    "threshold and junk": (
        another_threshold_and_junk,
        {"dataset:ember": "restored", "resize:ember": "built", "chop:ember": "maybe"},
    ),
    "build deleted": (
        lambda world: shutil.rmtree(world.root / "build"),
        {f"{stage}:ember": "restored" for stage in ("dataset", "train", "resize", "chop")},
    ),
    "there and back": (there_and_back, {"resize:ember": "restored", "chop:ember": "restored"}),
    "a damaged blob": (lambda world: damage(blob(world, "chop")), {"chop:ember": "built"}),
    "a damaged spectrum": (
        lambda world: damage(blob(world, "spectrum", "spectrum")),
        {"spectrum:ember": "built", "resize:ember": "maybe", "chop:ember": "maybe"},
    ),
    "a twin": (a_twin, {f"{stage}:twin": "restored" for stage in ("dataset", "train", "resize", "chop")}),
    "a broken image": (
        lambda world: world.write("projects/ember/images/1.png", b"junk"),
        {"dataset:ember": "built", "latents:ember": "built"}
        | {f"{stage}:ember": "maybe" for stage in ("train", "spectrum", "resize", "chop")},
    ),
    "no images": (
        lambda world: shutil.rmtree(world.root / "projects/ember/images"),
        {"dataset:ember": "failed"}
        | {f"{stage}:ember": "blocked" for stage in ("latents", "train", "spectrum", "resize", "chop")},
    ),
    "a new twin": (
        a_new_twin_of_an_edited_project,
        {"dataset:twin": "restored", "train:ember": "built", "train:twin": "restored", "chop:twin": "restored"}
        | {f"{stage}:ember": "maybe" for stage in ("spectrum", "resize", "chop")},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_planned_is_what_doit_does_and_a_plan_changes_nothing(built: World, name: str):
    change, expected = EDITS[name]
    change(built)
    before = kept(built)
    plan = planned(built)
    assert kept(built) == before
    assert expected.items() <= events(plan).items()
    result = built.doit()
    failed = {job for job, event in result.ran.items() if event == "failed"}
    for job, event in events(plan).items():
        done = result.ran.get(job)
        if event == "maybe":
            assert done in (None, "built", "restored", "published")
        elif event == "blocked" or (failed and done is None):
            assert done is None
        elif job not in failed:
            assert done == event, job
    assert result.ran.keys() <= events(plan).keys(), "what is planned as fresh does nothing"
    assert list(result.ran) == [job for job in events(plan) if job in result.ran], "in the order of the plan"
    if not failed:
        assert not planned(built)["stale"]


def test_a_new_repository_is_planned_whole_and_the_unknown_is_said_to_be(empty: World):
    empty.project()
    plan = planned(empty)
    assert [job["job"].partition(":")[0] for job in plan["jobs"]] == [
        "base", "norms", "dataset", "latents", "train", "spectrum", "resize", "chop",
    ]  # fmt: skip
    assert set(events(plan).values()) == {"built"} and all("never built" in job["why"] for job in plan["jobs"])
    assert plan["total"] == {"jobs": 8, "seconds": None, "bytes": None, "unknown": 8}
    assert not list(empty.root.glob(".lorabuild/runs/*")) and not (empty.root / "build").exists()
    out = empty.lorabuild("plan").out
    assert out.splitlines()[-1] == "8 jobs would run, time unknown, disk unknown"


def test_a_target_is_planned_with_what_it_needs_and_no_more(built: World):
    built.manifest(keep='["TE"]', thr=-2.8)
    assert events(planned(built, "resize:ember")) == {"resize:ember": "built"}
    assert events(planned(built, "spectrum")) == {}
    assert events(planned(built, "ember")) == {"resize:ember": "built", "chop:ember": "built"}
    assert built.lorabuild("plan", "spectrum:ember").out == "nothing to do: 6 jobs are fresh\n"


def test_doit_plan_is_the_same_and_works_in_a_folder_below(built: World):
    built.manifest(keep='["TE"]')
    result = built.doit("plan")
    assert result.code == 1 and result.out == built.lorabuild("plan").out
    shutil.rmtree(built.root / "projects/ember/images")
    built.write("projects/ember/images/1.png", b"")
    below = World(built.root / "projects/ember")
    assert "dataset:ember" in below.lorabuild("plan").out


def test_mistakes_are_one_line_and_with_json_nothing_is_on_stdout(built: World):
    result = built.lorabuild("plan", "--json", "chop:embr")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith('chop:embr: no such target (did you mean "chop:ember"?)')
    edit(built, "seed = 7", "sed = 7")
    result = built.lorabuild("plan", "--json")
    assert (result.code, result.out, result.err.count("\n")) == (3, "", 1)


def test_a_plan_waits_for_nobody_and_starts_no_worker(built: World, monkeypatch: pytest.MonkeyPatch, capsys):
    from filelock import FileLock

    built.manifest(seed=9)
    monkeypatch.setattr(Pool, "_start", lambda pool: pytest.fail("a worker was started"))
    monkeypatch.chdir(built.root)
    with FileLock(built.root / ".lorabuild/lock"):
        assert main(["train:ember"]) == 1
    assert "recipe.seed: 7 -> 9" in capsys.readouterr().out


# estimates


def test_a_training_is_counted_and_weighed_by_its_last_build(built: World):
    edit(built, "max_train_steps = 4", "max_train_steps = 12")
    edit(built, "train_batch_size = 2", "train_batch_size = 2\ngradient_accumulation_steps = 2")
    plan = planned(built)
    (train,) = (job for job in plan["jobs"] if job["job"] == "train:ember")
    assert train["training"] == {
        "images": 4, "samples": 4, "batch": 2, "batches": 3, "exact": True, "accumulation": 2, "updates": 12,
        "snapshots": 6, "updates_per_epoch": 1.5, "passes": 8.0, "missing": [2, 4, 6, 8, 10, 12], "trained": 12,
        "snapshot_bytes": train["training"]["snapshot_bytes"], "notes": train["training"]["notes"],
    }  # fmt: skip
    (note,) = train["training"]["notes"]
    assert note.startswith("another length is another training, from the start; to go on from the finished one: init =")
    record = next(
        one
        for path in (built.root / ".lorabuild/store/record").rglob("*.json")
        if (one := json.loads(path.read_text()))["stage"] == "train" and "facts.json" in one["outputs"]
    )
    assert train["seconds"] == pytest.approx(record["seconds"] * 6, abs=0.01)  # three times the updates, twice as large
    weights = record["outputs"]["weights"]["size"]
    assert train["training"]["snapshot_bytes"] == weights
    assert 14 * weights < train["bytes"] < 14.1 * weights  # with six snapshots, in the store and in build/
    out = built.lorabuild("plan").out
    assert (
        "4 images × repeats = 4 ÷ batch 2 = 3 batches ÷ accumulation 2 = 1.5 updates an epoch;"
        " 12 updates in all, 8 passes over the data; 6 snapshots × about "
    ) in out
    assert f"    {note}\n" in out
    assert re.fullmatch(
        r"4 jobs would run \(3 maybe\), about (\d+\.\d s|\d+ min), about \d+\.\d MB", out.splitlines()[-1]
    )


def test_a_new_project_is_weighed_by_one_like_it(built: World):
    built.project("other", seed=11)
    plan = planned(built, "other")
    (train,) = (job for job in plan["jobs"] if job["job"] == "train:other")
    assert train["seconds"] > 0 and train["bytes"] > 1000 and plan["total"]["unknown"] == 0


def test_what_is_only_copied_takes_its_size_and_no_time(built: World):
    chopped = built.root / "build/ember/ember-chopped.safetensors"
    size = chopped.stat().st_size
    chopped.unlink()
    (job,) = planned(built)["jobs"]
    assert (job["event"], job["seconds"]) == ("restored", 0.0)
    assert 0 < job["bytes"] <= size


def test_updates_go_on_over_the_end_of_an_epoch():
    steps = Steps(images=10, samples=20, batch=4, batches=6, exact=True, accumulation=4, updates=9, snapshots=0)
    assert (steps.updates_per_epoch, steps.passes) == (1.5, 6.0)


# parts


def test_jobs_come_after_what_they_need_whatever_their_order():
    names = {"train:b": [Artifact("train:a", "weights")], "train:a": [Component("tiny", "unet")], "base:tiny": []}
    jobs = {name: Job(name, {}, {str(n): item for n, item in enumerate(items)}, []) for name, items in names.items()}
    assert in_order(["train:b"], jobs) == ["base:tiny", "train:a", "train:b"]


def test_verbs_that_read_are_commands_of_doit():
    assert {"plan", "why", "status"} <= graph.COMMANDS.keys()
